package httpd

import (
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

type uploadInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the image"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the image; default when left out"`
}

func (s *Server) registerImages() error {
	return handle(s, route{method: http.MethodPut, path: "/v1/images/{name}/content", right: authz.Right{Verb: authz.Upload, Kind: api.KindImage, Scope: authz.ScopeTenant},
		binary: true, answer: api.Image{}, summary: "Upload the bytes of an image",
		about: "The image must be in the catalogue; size and checksum are verified against it. The bytes land on the node that is asked; the others fetch them from there."},
		(*exchange).upload)
}

func (x *exchange) upload(in *uploadInput) error {
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	key := api.Key(x.tenant, in.Name)
	image := fsm.Images.Get(view, key)
	if image == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindImage, key).Do("create it first, with its size and checksum")
	}
	if media, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type")); err != nil || media != "application/octet-stream" {
		return withStatus(http.StatusUnsupportedMediaType, api.Invalid("Content-Type", "is %.100q", x.r.Header.Get("Content-Type")).Allow("application/octet-stream"))
	}
	if n := x.r.ContentLength; n >= 0 && n != image.SizeBytes {
		return api.Invalid("size_bytes", "the body has %d bytes", n).On(api.KindImage, key).Allow("%d, as the catalogue says", image.SizeBytes).Do("upload the right file, or create another image")
	}
	x.leaveSlot()
	leave, err := x.s.uploads.enter()
	if err != nil {
		return err
	}
	defer leave()
	defer func() { _ = http.NewResponseController(x.w).SetReadDeadline(time.Time{}) }()
	body := &persistent{x: x, r: io.LimitReader(x.r.Body, image.SizeBytes+1)}
	if err := x.s.cfg.Images.Import(x.ctx(), image, body); err != nil {
		return err
	}
	x.index(x.s.cfg.Cluster.State().Index())
	return x.answer(http.StatusOK, image)
}

// persistent reads an upload as long as bytes keep coming.
type persistent struct {
	x *exchange
	r io.Reader
}

// Read implements io.Reader.
func (p *persistent) Read(b []byte) (int, error) {
	_ = http.NewResponseController(p.x.w).SetReadDeadline(time.Now().Add(UploadIdleMax))
	n, err := p.r.Read(b)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader returns io.EOF itself
		err = api.Errorf(api.CodeInvalid, "the upload broke off: %v", err).Do("repeat it")
	}
	return n, err
}
