package engine_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
)

// Many containers are listed with all that is known of them in one round trip.
func TestListOfMany(t *testing.T) {
	const n = 300
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	if _, err := e.Engine.Pull(t.Context(), image, nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			_, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Container: containervm.Spec{
				Name: fmt.Sprintf("c%03d", i), Args: []string{"echo", fmt.Sprint(i)}}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c := e.Connect(t) // a new process, which knows nothing yet
	eng := e.Open(t, c, nil)
	e.Lab.ResetCounters()
	_, infos, err := eng.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := e.Lab.ResetCounters()
	for _, n := range []string{"WaitForUpdatesEx", "DestroyPropertyFilter"} { // of the creations, which end when they end
		delete(got.Requests, n)
	}
	if d := cmp.Diff(map[string]int{"RetrievePropertiesEx": 1}, got.Requests); d != "" || len(got.Files) > 0 {
		t.Errorf("requests (-want +got):\n%s\nfiles: %v", d, got.Files)
	}
	seen := map[string]bool{}
	for _, i := range infos {
		if i.State != containervm.Created || i.Image == "" || len(i.Args) != 2 || i.Name != fmt.Sprintf("c%03s", i.Args[1]) {
			t.Errorf("listed: %+v", i)
		}
		seen[i.Name] = true
	}
	if len(infos) != n || len(seen) != n {
		t.Errorf("%d containers of %d names are listed, want %d", len(infos), len(seen), n)
	}
}
