package main

import (
	"bytes"
	"context"
	"crypto/des" //nolint:gosec // RFB's password authentication is made of it
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"time"
)

// What of RFB (RFC 6143) the proxy speaks: both handshakes up to ClientInit.
const (
	rfbVersion       = "RFB 003.008\n"
	rfbNone          = 1
	rfbPassword      = 2
	rfbChallenge     = 16 // bytes
	handshakeMax     = 20 * time.Second
	viewerLetters    = "abcdefghjkmnpqrstuvwxyzACDEFGHJKLMNPQRTUVWXY346789"
	viewerPassLength = 8 // all that RFB looks at
)

var errWrongPassword = errors.New("wrong password")

// newViewerPassword is one that a person can type.
func newViewerPassword() string {
	out := make([]byte, 0, viewerPassLength)
	for one := make([]byte, 1); len(out) < viewerPassLength; {
		_, _ = rand.Read(one) // never fails
		if int(one[0]) < 256/len(viewerLetters)*len(viewerLetters) {
			out = append(out, viewerLetters[int(one[0])%len(viewerLetters)])
		}
	}
	return string(out)
}

// join lets a viewer in, opens the display, and copies both ways until either
// ends.
func (p *displayProxy) join(ctx context.Context, viewer net.Conn) error {
	defer viewer.Close()
	stop := context.AfterFunc(ctx, func() { _ = viewer.Close() })
	defer stop()
	_ = viewer.SetDeadline(time.Now().Add(handshakeMax))
	if err := welcome(viewer, p.password); err != nil {
		return err
	}
	display, err := p.open()
	if err != nil {
		return err
	}
	defer display.Close()
	if err := enter(display); err != nil {
		return fmt.Errorf("display: %w", err)
	}
	_ = viewer.SetDeadline(time.Time{})
	done := make(chan struct{}, 2)
	for _, way := range [][2]io.ReadWriter{{viewer, display}, {display, viewer}} {
		go func() {
			_, _ = io.Copy(way[0], way[1]) // an end is all that it tells
			done <- struct{}{}
		}()
	}
	<-done
	_ = viewer.Close()
	_ = display.Close()
	<-done
	return nil
}

// welcome is the handshake with a viewer, which must know the password unless
// it is empty.
func welcome(viewer io.ReadWriter, password string) error {
	if _, err := io.WriteString(viewer, rfbVersion); err != nil {
		return err
	}
	version := make([]byte, len(rfbVersion))
	if _, err := io.ReadFull(viewer, version); err != nil {
		return err
	}
	kind := byte(rfbPassword)
	if password == "" {
		kind = rfbNone
	}
	old := bytes.HasPrefix(version, []byte("RFB 003.003"))
	if err := agree(viewer, kind, old); err != nil {
		return err
	}
	if password != "" {
		if err := checkPassword(viewer, password); err != nil {
			_, _ = viewer.Write([]byte{0, 0, 0, 1})
			if !old && !bytes.HasPrefix(version, []byte("RFB 003.007")) {
				_, _ = viewer.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(err.Error()))), err.Error()...))
			}
			return err
		}
	}
	if kind == rfbNone && !bytes.HasPrefix(version, []byte("RFB 003.008")) {
		return nil // older ones get no result where nothing was asked for
	}
	_, err := viewer.Write([]byte{0, 0, 0, 0})
	return err
}

// agree settles on the security type; the oldest viewers are told.
func agree(viewer io.ReadWriter, kind byte, old bool) error {
	if old {
		_, err := viewer.Write([]byte{0, 0, 0, kind})
		return err
	}
	if _, err := viewer.Write([]byte{1, kind}); err != nil {
		return err
	}
	chosen := make([]byte, 1)
	if _, err := io.ReadFull(viewer, chosen); err != nil {
		return err
	}
	if chosen[0] != kind {
		return fmt.Errorf("the viewer wants security type %d", chosen[0])
	}
	return nil
}

func checkPassword(viewer io.ReadWriter, password string) error {
	challenge, answer := make([]byte, rfbChallenge), make([]byte, rfbChallenge)
	_, _ = rand.Read(challenge) // never fails
	if _, err := viewer.Write(challenge); err != nil {
		return err
	}
	if _, err := io.ReadFull(viewer, answer); err != nil {
		return err
	}
	want, err := answerChallenge(challenge, password)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(answer, want) != 1 {
		return errWrongPassword
	}
	return nil
}

// answerChallenge encrypts the challenge with the password as the DES key,
// whose bits RFB mirrors in each byte.
func answerChallenge(challenge []byte, password string) ([]byte, error) {
	key := make([]byte, des.BlockSize)
	copy(key, password)
	for i := range key {
		key[i] = bits.Reverse8(key[i])
	}
	block, err := des.NewCipher(key) //nolint:gosec // see above
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(challenge))
	for at := 0; at < len(out); at += des.BlockSize {
		block.Encrypt(out[at:], challenge[at:])
	}
	return out, nil
}

// enter is the handshake with a display that asks for no password.
func enter(display io.ReadWriter) error {
	version := make([]byte, len(rfbVersion))
	if _, err := io.ReadFull(display, version); err != nil {
		return err
	}
	if string(version) != rfbVersion {
		return fmt.Errorf("it speaks %q", version)
	}
	if _, err := io.WriteString(display, rfbVersion); err != nil {
		return err
	}
	count := make([]byte, 1)
	if _, err := io.ReadFull(display, count); err != nil {
		return err
	}
	kinds := make([]byte, count[0])
	if _, err := io.ReadFull(display, kinds); err != nil {
		return err
	}
	if !bytes.Contains(kinds, []byte{rfbNone}) {
		return fmt.Errorf("it offers security types %v", kinds)
	}
	if _, err := display.Write([]byte{rfbNone}); err != nil {
		return err
	}
	result := make([]byte, 4)
	if _, err := io.ReadFull(display, result); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(result) != 0 {
		return errors.New("it refused")
	}
	return nil
}
