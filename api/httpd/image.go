package httpd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

type imageInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the image"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the image; default when left out"`
}

type uploadInput struct {
	Name         string `path:"name" maxLength:"63" doc:"name of the image"`
	Tenant       string `query:"tenant" maxLength:"63" doc:"of the image; default when left out"`
	ContentRange string `header:"Content-Range" maxLength:"100" doc:"of an upload that goes on: bytes FROM-TO/SIZE"`
}

type contentInput struct {
	Name    string `path:"name" maxLength:"63" doc:"name of the image"`
	Tenant  string `query:"tenant" maxLength:"63" doc:"of the image; default when left out"`
	Range   string `header:"Range" maxLength:"100" doc:"one range of bytes"`
	IfRange string `header:"If-Range" maxLength:"100" doc:"ETag of the content that the range is of"`
}

type imageVerbInput struct {
	WriteOptions
	Name   string `path:"name" maxLength:"63" doc:"name of the image"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the image; default when left out"`
}

// fetchBody is the body of fetch.
type fetchBody struct {
	Node string `json:"node,omitempty" maxLength:"63" doc:"that fetches; left out: the cluster chooses"`
}

func (s *Server) registerImages() error {
	right := func(v authz.Verb) authz.Right {
		return authz.Right{Verb: v, Kind: api.KindImage, Scope: authz.ScopeTenant}
	}
	return errors.Join(
		handle(s, route{method: http.MethodPut, path: "/v1/images/{name}/content", right: right(authz.Upload),
			binary: true, answer: api.Image{}, summary: "Upload the bytes of an image",
			about: "The image must be in the catalogue; size and checksum are verified against it. The bytes land on the node that is asked; the others fetch them from there. " +
				"What has arrived when an upload breaks off stays on that node for a day: ask it for the upload, and go on with a Content-Range."},
			(*exchange).upload),
		handle(s, route{method: http.MethodGet, path: "/v1/images/{name}/upload", right: right(authz.Upload),
			answer: api.Upload{}, summary: "How much of an image has arrived at the node that is asked"}, (*exchange).arrived),
		handle(s, route{method: http.MethodGet, path: "/v1/images/{name}/content", right: right(authz.Read),
			media: "application/octet-stream", summary: "Download the bytes of an image",
			about: "From whichever node has them. The ETag is the checksum of the whole; a Range is answered with a part."}, (*exchange).content),
		handle(s, route{method: http.MethodPost, path: "/v1/images/{name}/fetch", right: right(authz.Upload), change: true, body: fetchBody{}, bytes: VerbBytesMax,
			answer: api.Task{}, summary: "Fetch an image from its URL",
			about: "Asked for by itself when an image with a URL is created; needed again only when that failed."}, (*exchange).fetch))
}

// imageOf finds the image of a request.
func (x *exchange) imageOf(name string) (*api.Image, error) {
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return nil, err
	}
	key := api.Key(x.tenant, name)
	image := fsm.Images.Get(view, key)
	if image == nil {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindImage, key).Do("create it first, with its size and checksum")
	}
	return image, nil
}

func (x *exchange) upload(in *uploadInput) error {
	image, err := x.imageOf(in.Name)
	if err != nil {
		return err
	}
	key := api.Key(x.tenant, in.Name)
	if media, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type")); err != nil || media != "application/octet-stream" {
		return withStatus(http.StatusUnsupportedMediaType, api.Invalid("Content-Type", "is %.100q", x.r.Header.Get("Content-Type")).Allow("application/octet-stream"))
	}
	offset, err := uploadOffset(in.ContentRange, image.SizeBytes)
	if err != nil {
		return err
	}
	most := image.SizeBytes
	if most == 0 {
		most = api.ImageSizeMax
	}
	if n := x.r.ContentLength; n >= 0 && image.SizeBytes > 0 && n != image.SizeBytes-offset {
		return api.Invalid("size_bytes", "the body has %d bytes", n).On(api.KindImage, key).Allow("%d, as the catalogue says", image.SizeBytes-offset).Do("upload the right file, or create another image")
	}
	x.leaveSlot()
	leave, err := x.s.uploads.enter()
	if err != nil {
		return err
	}
	defer leave()
	defer func() { _ = http.NewResponseController(x.w).SetReadDeadline(time.Time{}) }()
	body := &persistent{x: x, r: io.LimitReader(x.r.Body, most-offset+1)}
	if err := x.s.cfg.Images.Import(x.ctx(), image, offset, body); err != nil {
		return err
	}
	x.index(x.s.cfg.Cluster.State().Index())
	return x.answer(http.StatusOK, image)
}

// uploadOffset reads "bytes FROM-TO/SIZE", where TO is the last byte: an upload
// goes on to the end.
func uploadOffset(header string, sizeBytes int64) (int64, error) {
	if header == "" {
		return 0, nil
	}
	wrong := api.Invalid("Content-Range", "is %.100q", header).Allow("bytes FROM-%d/%d", sizeBytes-1, sizeBytes)
	span, total, ok := strings.Cut(strings.TrimPrefix(header, "bytes "), "/")
	from, to, dash := strings.Cut(span, "-")
	offset, err := strconv.ParseUint(from, 10, 62)
	if !ok || !dash || err != nil || sizeBytes == 0 || total != strconv.FormatInt(sizeBytes, 10) || to != strconv.FormatInt(sizeBytes-1, 10) || int64(offset) >= sizeBytes {
		return 0, wrong
	}
	return int64(offset), nil
}

func (x *exchange) arrived(in *imageInput) error {
	image, err := x.imageOf(in.Name)
	if err != nil {
		return err
	}
	n, err := x.s.cfg.Images.Arrived(x.ctx(), image)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, api.Upload{Image: image.Name, Node: x.s.cfg.Node, OffsetBytes: n, SizeBytes: image.SizeBytes})
}

// content sends an image, or a part of it.
func (x *exchange) content(in *contentInput) error {
	image, err := x.imageOf(in.Name)
	if err != nil {
		return err
	}
	x.leaveSlot()
	leave, err := x.s.uploads.enter()
	if err != nil {
		return err
	}
	defer leave()
	first, size, err := x.s.cfg.Images.OpenImage(x.ctx(), image, 0)
	if err != nil {
		return err
	}
	r := &remoteFile{open: func(at int64) (io.ReadCloser, error) {
		r, _, err := x.s.cfg.Images.OpenImage(x.ctx(), image, at)
		return r, err
	}, size: size, r: first}
	defer r.close()
	if strings.Contains(in.Range, ",") {
		x.r.Header.Del("Range") // many small parts would cost more than the whole
	}
	h := x.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", `"`+image.SHA256+`"`)
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", image.Name+"."+image.Format))
	http.ServeContent(&patientResponse{ResponseWriter: x.w, to: patient{x}}, x.r, "", time.Time{}, r)
	return nil
}

// patientResponse is an answer whose client has time as long as it reads.
type patientResponse struct {
	http.ResponseWriter
	to patient
}

// Write implements http.ResponseWriter.
func (p *patientResponse) Write(b []byte) (int, error) { return p.to.Write(b) }

// remoteFile is a file that may lie on another node. Seeking costs nothing until
// something is read.
type remoteFile struct {
	open func(at int64) (io.ReadCloser, error)
	size int64
	r    io.ReadCloser // where reading goes on, at position read; nil: nowhere
	read int64
	at   int64
}

// Seek implements io.Seeker.
func (f *remoteFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += f.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	f.at = offset
	return offset, nil
}

// Read implements io.Reader.
func (f *remoteFile) Read(p []byte) (int, error) {
	if f.at >= f.size {
		return 0, io.EOF
	}
	if f.r == nil || f.read != f.at {
		f.close()
		r, err := f.open(f.at)
		if err != nil {
			return 0, err
		}
		f.r, f.read = r, f.at
	}
	n, err := f.r.Read(p)
	f.at, f.read = f.at+int64(n), f.read+int64(n)
	if errors.Is(err, io.EOF) && f.at < f.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (f *remoteFile) close() {
	if f.r != nil {
		_ = f.r.Close() // it was only read
		f.r = nil
	}
}

func (x *exchange) fetch(in *imageVerbInput) error {
	var body fetchBody
	if err := x.decodeOptional(&body); err != nil {
		return err
	}
	return x.submit(in.Plan, api.TaskFetch, api.KindImage, in.Name, body)
}

// submit asks for a task about an object of the request's tenant, and answers
// with it.
func (x *exchange) submit(plan bool, verb, kind, name string, args any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	entry := fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: x.derivedName("task"), Verb: verb, Kind: kind, Object: api.Key(x.tenant, name), Args: raw})
	return x.change(plan, entry, func(out fsm.Outcome) error {
		return x.answer(http.StatusOK, fsm.Tasks.Get(x.s.cfg.Cluster.State().Read(), out.Key))
	})
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
