package httpd

import (
	"errors"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

// registerResources gives every kind its list and objects, and those that
// users edit their changes: one code for all.
func (s *Server) registerResources() error {
	var all []error
	for _, k := range api.Kinds() {
		res, scope := s.resources[k.Name], authz.ScopeCluster
		if k.TenantScope {
			scope = authz.ScopeTenant
		}
		right := func(v authz.Verb) authz.Right { return authz.Right{Verb: v, Kind: k.Name, Scope: scope} }
		list := route{method: http.MethodGet, path: "/v1/" + k.Plural, right: right(authz.List), answer: res.page(),
			summary: "List objects of kind " + k.Name, about: "With index, the answer waits until the kind changes."}
		read := route{method: http.MethodGet, path: "/v1/" + k.Plural + "/{name}", right: right(authz.Read), answer: res.zero(),
			summary: "Show one object of kind " + k.Name, about: "With index, the answer waits until the object changes."}
		if res.owned() {
			all = append(all, handle(s, list, s.serveList(res)))
		} else {
			all = append(all, handle(s, list, s.serveClusterList(res)))
		}
		if k.TenantScope {
			all = append(all, handle(s, read, func(x *exchange, in *objectInput) error { return x.object(res, in) }))
		} else {
			all = append(all, handle(s, read, func(x *exchange, in *clusterObjectInput) error {
				return x.object(res, &objectInput{ReadOptions: in.ReadOptions, Name: in.Name, At: in.At})
			}))
		}
		if k.UserEdits {
			all = append(all, s.registerChanges(res, right))
		}
	}
	return errors.Join(all...)
}

func (s *Server) registerChanges(res resourceOf, right func(authz.Verb) authz.Right) error {
	k := res.kind()
	create := route{method: http.MethodPost, path: "/v1/" + k.Plural, right: right(authz.Create), change: true, status: http.StatusCreated,
		body: res.zero(), bytes: ObjectBytesMax, answer: res.zero(), summary: "Create an object of kind " + k.Name}
	put := route{method: http.MethodPut, path: "/v1/" + k.Plural + "/{name}", right: right(authz.Update), change: true,
		body: res.zero(), bytes: ObjectBytesMax, answer: res.zero(), summary: "Create or replace an object of kind " + k.Name,
		about: "Replacing needs the revision that was read, in If-Match or as modified; without one an existing object answers 428."}
	remove := route{method: http.MethodDelete, path: "/v1/" + k.Plural + "/{name}", right: right(authz.Delete), change: true,
		status: http.StatusNoContent, summary: "Delete an object of kind " + k.Name, about: "If-Match names the revision, or * for any."}
	if k.TenantScope {
		return errors.Join(
			handle(s, create, func(x *exchange, in *createInput) error { return x.create(res, in.WriteOptions) }),
			handle(s, put, func(x *exchange, in *putInput) error { return x.put(res, in) }),
			handle(s, remove, func(x *exchange, in *putInput) error { return x.remove(res, in) }))
	}
	plain := func(in *clusterPutInput) *putInput {
		return &putInput{WriteOptions: in.WriteOptions, Name: in.Name, IfMatch: in.IfMatch, IfNoneMatch: in.IfNoneMatch}
	}
	return errors.Join(
		handle(s, create, func(x *exchange, in *clusterCreateInput) error { return x.create(res, in.WriteOptions) }),
		handle(s, put, func(x *exchange, in *clusterPutInput) error { return x.put(res, plain(in)) }),
		handle(s, remove, func(x *exchange, in *clusterPutInput) error { return x.remove(res, plain(in)) }))
}
