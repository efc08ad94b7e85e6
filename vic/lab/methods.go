package lab

import (
	"maps"
	"slices"
	"strings"
)

// anonymous are the methods that need no login.
var anonymous = set(`Login CloneSession RetrieveServiceContent RetrieveInternalContent`)

// supported are the API's methods that the lab does as vSphere would. The
// simulator below it answers many more, but what it answers is made up, so
// everything else is refused.
var supported = set(`
	Login Logout SessionIsActive TerminateSession AcquireCloneTicket CloneSession
	RetrieveServiceContent RetrieveInternalContent CurrentTime

	CreateFilter DestroyPropertyFilter CreatePropertyCollector DestroyPropertyCollector
	CheckForUpdates WaitForUpdates WaitForUpdatesEx CancelWaitForUpdates
	RetrieveProperties RetrievePropertiesEx ContinueRetrievePropertiesEx CancelRetrievePropertiesEx Fetch
	CreateContainerView CreateListView DestroyView ModifyListView ResetListView

	FindByUuid FindAllByUuid FindByDatastorePath FindByDnsName FindAllByDnsName FindByIp FindAllByIp
	FindByInventoryPath FindChild

	CreateCollectorForEvents QueryEvents ReadNextEvents ReadPreviousEvents
	CreateCollectorForTasks ReadNextTasks ReadPreviousTasks
	RewindCollector ResetCollector DestroyCollector SetCollectorPageSize
	CancelTask

	QueryAvailablePerfMetric QueryPerf

	QueryOptions QueryConfigOption QueryConfigOptionEx QueryConfigOptionDescriptor QueryConfigTarget QueryTargetCapabilities
	RetrieveRolePermissions RetrieveAllPermissions RetrieveEntityPermissions
	HasPrivilegeOnEntities HasPrivilegeOnEntity HasUserPrivilegeOnEntities FetchUserPrivilegeOnEntities

	AddCustomFieldDef RemoveCustomFieldDef RenameCustomFieldDef SetField setCustomValue SetCustomValue

	CreateFolder MoveIntoFolder_Task Rename_Task Destroy_Task
	CreateResourcePool UpdateConfig

	CreateVM_Task ReconfigVM_Task UnregisterVM RefreshStorageInfo
	PowerOnVM_Task PowerOffVM_Task ResetVM_Task SuspendVM_Task ShutdownGuest RebootGuest PowerOnMultiVM_Task
	RelocateVM_Task
	CreateSnapshot_Task RevertToCurrentSnapshot_Task RemoveAllSnapshots_Task RevertToSnapshot_Task RemoveSnapshot_Task RenameSnapshot

	MakeDirectory MoveDatastoreFile_Task CopyDatastoreFile_Task DeleteDatastoreFile_Task
	CreateVirtualDisk_Task CopyVirtualDisk_Task MoveVirtualDisk_Task DeleteVirtualDisk_Task ExtendVirtualDisk_Task
	QueryVirtualDiskUuid
	SearchDatastore_Task SearchDatastoreSubFolders_Task RefreshDatastore RefreshDatastoreStorageInfo
`)

func set(s string) map[string]bool {
	m := map[string]bool{}
	for _, n := range strings.Fields(s) {
		m[n] = true
	}
	return m
}

// Supported returns the names of the API's methods that the lab has, sorted.
// Every other method fails with NotSupported.
func Supported() []string { return slices.Sorted(maps.Keys(supported)) }
