package httpd

import (
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

func (s *Server) registerTemplates() error {
	return handle(s, route{method: http.MethodPost, path: "/v1/vms/{name}/template", right: authz.Right{Verb: authz.Submit, Kind: api.KindVM, Scope: authz.ScopeTenant},
		change: true, body: api.TemplateArgs{}, bytes: VerbBytesMax, answer: api.Task{}, summary: "Make an image of a disk",
		about: "The VM must be off. The image appears in the catalogue when its bytes are complete."}, (*exchange).template)
}

func (x *exchange) template(in *vmInput) error {
	var body api.TemplateArgs
	if err := x.decode(&body); err != nil {
		return err
	}
	if err := api.CheckName("image", body.Image); err != nil {
		return err
	}
	if err := x.allowed(authz.Create, api.KindImage, x.tenant, body.Image); err != nil {
		return err
	}
	return x.submit(in.Plan, api.TaskTemplate, api.KindVM, in.Name, body)
}
