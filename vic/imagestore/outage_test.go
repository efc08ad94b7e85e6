package imagestore_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// A registry that is stopped and started while an image is pulled delays the
// pull, and no more.
func TestRegistryOutage(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true, Images: &imagestore.Options{Bytes: 2 * small}})
	im := testimage.Image{}
	for i := range 3 {
		b := make([]byte, 24<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(b)
		l := testimage.NewLayer()
		l.AddFile("noise"+string(rune('0'+i)), b, nil)
		im.Steps = append(im.Steps, testimage.Step{Layer: l})
	}
	layout := t.TempDir()
	if _, err := im.Write(t.Context(), layout, nil); err != nil {
		t.Fatal(err)
	}
	name := e.Push(t, layout, "noise:1")
	var once sync.Once
	back := make(chan error, 1)
	const outage = time.Second
	begin := time.Now()
	img, err := e.Engine.Pull(t.Context(), name, func(ev vic.Event) {
		if ev.Phase == "download" && ev.Done > 1<<20 {
			once.Do(func() {
				if err := e.Registry.Stop(); err != nil {
					t.Error(err)
				}
				go func() {
					time.Sleep(outage)
					back <- e.Registry.Restart(t.Context())
				}()
			})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-back:
		if err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatal("the pull ended before the registry was back")
	}
	t.Logf("the pull took %v", time.Since(begin))
	checkChain(t, e, img.Root().Path)
	if left := storeFiles(t, e, "leases"); len(left) > 0 {
		t.Errorf("leases are left: %v", left)
	}
}
