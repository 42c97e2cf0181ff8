//go:build browser

package openapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"converge/producers/httpapi"
)

// browser starts Chromium; its context ends with the test. What the page complains about fails the test, and
// so does a request to any other host than the one of the URL.
func browser(t *testing.T, url string) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.UserDataDir(t.TempDir()))
	allocated, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	bounded, cancel := context.WithTimeout(allocated, 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(bounded, chromedp.WithListener(func(e any) {
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the page threw: %s %+v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception)
		case *runtime.EventConsoleAPICalled:
			if e.Type == "error" || e.Type == "warning" {
				t.Errorf("the page says: %s %v", e.Type, e.Args)
			}
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError {
				t.Errorf("the browser says: %s %s", e.Entry.Text, e.Entry.URL)
			}
		case *network.EventRequestWillBeSent:
			if asked := e.Request.URL; !strings.HasPrefix(asked, url+"/") && !strings.HasPrefix(asked, "data:") {
				t.Errorf("the page asks %s", asked)
			}
		}
	}))
	t.Cleanup(cancel)
	for _, enable := range []func() error{
		func() error { _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); return err },
		func() error { _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); return err },
	} {
		if err := enable(); err != nil {
			t.Fatal(err)
		}
	}
	return ctx
}

type action = chromedp.Action[chromedp.Void]

func window(width, height int64, scheme string) action {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		if _, err := cdp.Call(ctx, target, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: width, Height: height, DeviceScaleFactor: 1,
		}); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	})
}

// picture keeps a screenshot when CONVERGE_SCREENSHOTS names a directory.
func picture(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	dir := os.Getenv("CONVERGE_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// until waits for a JavaScript expression to be true.
func until(expression string) action {
	return chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingTimeout(30*time.Second), chromedp.WithPollingInterval(100*time.Millisecond))
}

func TestBrowserShowsTheOperationsAndTriesOneOut(t *testing.T) {
	var mu sync.Mutex
	var keys []string
	api := served(t)
	api.Handle("POST /payments", func(w http.ResponseWriter, r *http.Request) error {
		body, err := api.ReadBody(w, r)
		if err != nil {
			return err
		}
		order := body.Object().IDOrNumber("order_id")
		mu.Lock()
		keys = append(keys, r.Header.Get("Idempotency-Key")+" "+order)
		mu.Unlock()
		response, err := httpapi.JSON(http.StatusCreated, map[string]string{"receipt_id": "R-42"}, nil)
		if err != nil {
			return err
		}
		return response.Write(w)
	})
	server := httptest.NewServer(api)
	defer server.Close()
	operations := 0
	for _, item := range parsed(t)["paths"].(map[string]any) {
		operations += len(item.(map[string]any))
	}
	count, err := json.Marshal(operations)
	if err != nil {
		t.Fatal(err)
	}
	ctx := browser(t, server.URL)
	if err := chromedp.Do(ctx, window(1280, 900, "light"), chromedp.Navigate(server.URL+"/docs"),
		until(`document.querySelectorAll("#viewer .opblock").length === `+string(count)),
		until(`document.querySelectorAll("#viewer .errors-wrapper").length === 0`),
		until(`document.querySelector("#viewer h1, #viewer h2.title")?.textContent.startsWith("converge")`)); err != nil {
		t.Fatal(err)
	}
	picture(t, ctx, "docs-light")
	if err := chromedp.Do(ctx, window(1280, 900, "dark"), until(`document.documentElement.classList.contains("dark-mode")`)); err != nil {
		t.Fatal(err)
	}
	picture(t, ctx, "docs-dark")

	const pay = "#operations-Payments-pay"
	if err := chromedp.Do(ctx, window(1280, 2200, "light"), chromedp.Click(chromedp.CSS(pay+" .opblock-summary-control")),
		chromedp.WaitVisible(chromedp.CSS(pay+" .execute")),
		until(`document.querySelector('`+pay+` tr[data-param-name="Idempotency-Key"] input')?.value === "abc-123"`),
		chromedp.Click(chromedp.CSS(pay+" .execute")),
		until(`document.querySelector("`+pay+` .live-responses-table")?.textContent?.includes("R-42")`),
		until(`document.querySelector("`+pay+` .live-responses-table")?.textContent?.includes("201")`)); err != nil {
		t.Fatal(err)
	}
	picture(t, ctx, "docs-payment")
	mu.Lock()
	defer mu.Unlock()
	if len(keys) != 1 || keys[0] != "abc-123 42" {
		t.Errorf("the server was asked %q", keys)
	}
}
