package api

import "time"

// Who carries out the tasks of a verb.
const (
	TaskAtLeader = "leader" // a loop of the leader
	TaskAtOwner  = "owner"  // the node that owns the VM
	TaskAtNode   = "node"   // the node that the argument "node" names
	TaskAtAny    = "any"    // that node, or where none is named one that the leader chooses
	TaskAtVolume = "volume" // the node that owns the VM which uses the volume, or that has the volume
)

// TaskVerb is what the tasks of one verb have in common. Code that treats tasks
// alike goes by it: the guard of task.submit, the leader's routing, the API.
type TaskVerb struct {
	Name     string
	Kind     string        // of the object that a task is about; empty: about no single one
	At       string        // who carries it out
	Deadline time.Duration // of tasks that name none; 0: TaskDefaultDeadline
}

// TaskVerbs lists every verb of tasks.
func TaskVerbs() []TaskVerb {
	return []TaskVerb{
		{Name: TaskRestart, Kind: KindVM, At: TaskAtOwner},
		{Name: TaskStop, Kind: KindVM, At: TaskAtOwner},
		{Name: TaskApply, At: TaskAtLeader},
		{Name: TaskMigrate, Kind: KindVM, At: TaskAtOwner, Deadline: MigrationDeadline},
		{Name: TaskDrain, Kind: KindNode, At: TaskAtLeader, Deadline: 12 * time.Hour},
		{Name: TaskMoveVolume, Kind: KindVolume, At: TaskAtVolume, Deadline: 12 * time.Hour},
		{Name: TaskBalance, At: TaskAtLeader, Deadline: 12 * time.Hour},
		{Name: TaskSnapshot, Kind: KindVM, At: TaskAtOwner, Deadline: time.Hour},
		{Name: TaskSnapshotRevert, Kind: KindVM, At: TaskAtOwner, Deadline: time.Hour},
		{Name: TaskSnapshotDelete, Kind: KindVM, At: TaskAtOwner, Deadline: time.Hour},
		{Name: TaskFetch, Kind: KindImage, At: TaskAtAny, Deadline: 12 * time.Hour},
		{Name: TaskTemplate, Kind: KindVM, At: TaskAtOwner, Deadline: 6 * time.Hour},
	}
}

// LookupTaskVerb finds a verb by its name.
func LookupTaskVerb(name string) (TaskVerb, bool) {
	for _, v := range TaskVerbs() {
		if v.Name == name {
			return v, true
		}
	}
	return TaskVerb{}, false
}

func taskVerbNames() []string {
	var names []string
	for _, v := range TaskVerbs() {
		names = append(names, v.Name)
	}
	return names
}
