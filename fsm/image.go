package fsm

import "github.com/debvisor/debvisor/api"

func checkImage(tx *Tx, before, after *api.Image) *api.Error {
	if after == nil {
		return dropImage(tx, before)
	}
	if err := wantTenant(tx, after.Tenant); err != nil {
		return err
	}
	if before == nil {
		if err := wantNewID(tx, after.ID); err != nil {
			return err
		}
		return fetchNewImage(tx, after)
	}
	if before.SHA256 != after.SHA256 || before.Format != after.Format || before.SizeBytes != after.SizeBytes {
		return api.Invalid("sha256", "format, checksum and size of an image are fixed").Do("create the new content under a new name")
	}
	if before.URL != after.URL && !imageStored(tx, before.ID) {
		return fetchNewImage(tx, after)
	}
	return nil
}

// fetchNewImage asks for the bytes of an image that has a URL, in the entry
// that says so: nobody has to ask again.
func fetchNewImage(tx *Tx, image *api.Image) *api.Error {
	key := api.Key(image.Tenant, image.Name)
	if image.URL == "" || activeTask(tx, api.TaskFetch, api.KindImage, key) != nil {
		return nil
	}
	if active := tx.counted(activeTasks); active >= api.TasksActiveMax {
		return api.Errorf(api.CodeLimit, "%d tasks have not ended", active).Allow("at most %d", api.TasksActiveMax).Do("wait for some of them, or cancel them")
	}
	verb, _ := api.LookupTaskVerb(api.TaskFetch)
	Tasks.put(tx, api.Task{Meta: api.Meta{Name: "fetch-" + tx.NewID(api.KindTask, key)[:18], Tenant: image.Tenant}, Verb: verb.Name, Kind: api.KindImage, Object: key,
		By: tx.By, Deadline: tx.Time.Add(verb.Deadline), State: api.TaskPending})
	return nil
}

// activeTask is a task of that verb about the object that has not ended, or
// nil.
func activeTask(r Reader, verb, kind, key string) *api.Task {
	for t := range Tasks.By(r, "object", kind+"/"+key) {
		if t.Verb == verb && !t.Ended() {
			return t
		}
	}
	return nil
}

// imageStored reports whether a node has the bytes.
func imageStored(tx *Tx, id string) bool {
	for r := range Replicas.By(tx, "of_id", id) {
		if r.State == api.ReplicaReady {
			return true
		}
	}
	return false
}

// checkFetch is the rule of image.fetch.
func checkFetch(tx *Tx, t *api.Task) *api.Error {
	image := Images.Get(tx, t.Object)
	if image.URL == "" {
		return api.Errorf(api.CodeConflict, "has no url to be fetched from").Do("upload it, or give it a url")
	}
	if other := activeTask(tx, api.TaskFetch, api.KindImage, t.Object); other != nil {
		return api.Errorf(api.CodeConflict, "is being fetched by task %s", other.Name).Do("wait for it, or cancel it")
	}
	return nil
}

// dropImage refuses while something depends on the image, ends what fetches it,
// and marks its copies.
func dropImage(tx *Tx, image *api.Image) *api.Error {
	key := api.Key(image.Tenant, image.Name)
	for v := range Volumes.By(tx, "image", key) {
		return api.Errorf(api.CodeConflict, "volume %s/%s is a linked clone of it", v.Tenant, v.Name).Do("delete the volume first")
	}
	for v := range VMs.By(tx, "image", key) {
		return api.Errorf(api.CodeConflict, "vm %s/%s boots from it or has it in a drive", v.Tenant, v.Name).Do("change the VM first")
	}
	if t := activeTask(tx, api.TaskFetch, api.KindImage, key); t != nil {
		ended := *t
		ended.Cancel = true
		if t.State == api.TaskPending {
			endTask(tx, &ended, api.TaskCancelled)
		}
		Tasks.put(tx, ended)
	}
	markReplicas(tx, image.ID)
	return nil
}

// markReplicas asks the nodes that have a copy of the object to remove it, and
// forgets those that were lost with their node.
func markReplicas(tx *Tx, id string) {
	var marked []api.Replica
	for r := range Replicas.By(tx, "of_id", id) {
		marked = append(marked, *r)
	}
	for _, r := range marked {
		if Nodes.Get(tx, r.Node) == nil {
			Replicas.delete(tx, r.Name) // lost with its node
			continue
		}
		r.Delete, r.State = true, api.ReplicaDeleting
		Replicas.put(tx, r)
	}
}
