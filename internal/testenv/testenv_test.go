package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRoot(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "internal", "testenv", "testenv_test.go")); err != nil {
		t.Errorf("Root = %s: %v", root, err)
	}
}

func TestLockFileHasNoAddresses(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.ReadFile(filepath.Join(root, "integration", "js", "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(lock), `"resolved"`) {
		t.Error(`package-lock.json holds download addresses ("resolved"): install with the .npmrc beside it`)
	}
}

func TestNodeCall(t *testing.T) {
	if testing.Short() {
		t.Skip("starts Node")
	}
	n := StartNode(t, "echo.mjs")
	type message struct{ Text string }
	for _, text := range []string{"", "a", strings.Repeat("long ", 50_000)} {
		var got message
		n.MustCall(t, "echo", message{text}, &got)
		if got.Text != text {
			t.Errorf("echo of %d bytes = %d bytes", len(text), len(got.Text))
		}
	}
	if err := n.Call("fail", "on purpose", nil); err == nil || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("fail = %v, want the message thrown", err)
	}
	if err := n.Call("absent", nil, nil); err == nil {
		t.Error("a method that is absent was called")
	}
}
