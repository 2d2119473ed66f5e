// bench measures a CRI runtime through its socket, alone or several side by
// side in one run, and prints a table.
//
//	go run ./test/bench [--endpoint own,[NAME=]unix:///path.sock,…] [--pods N] [--rounds N] …
//
// The endpoint "own", which is the default, starts our own engine in scratch
// directories. A registry with the image that all need is started too. Rounds of several endpoints are
// interleaved, so that what else the machine does falls on all of them alike.
// peers/ holds scripts that start other runtimes beside ours.
//
// What is measured, from the client's side of the socket:
//
//   - pod start and stop, with CNI and on the host's network
//   - container create, start, stop, remove
//   - ExecSync of true
//   - the log of a container that writes flat out: bytes and lines a second
//   - memory and processes per pod of one sleeping container
//   - for our own engine, from the start of a killed daemon to its first true answer
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// options are the command line.
type options struct {
	endpoints string
	handlers  string
	bin       string
	registry  string
	output    string
	scratch   string
	pods      int
	rounds    int
	flood     int
	only      string
}

func main() {
	var o options
	flag.StringVar(&o.endpoints, "endpoint", "own", "what to measure, comma-separated: own starts our engine, [NAME=]unix:///path is a socket")
	flag.StringVar(&o.handlers, "handlers", "", "runtime handlers to measure on each, comma-separated; none: the default one")
	flag.StringVar(&o.bin, "bin", "bin", "directory of our binaries")
	flag.StringVar(&o.registry, "registry", "", "host:port to serve the bench image at, on loopback; none: a free one")
	flag.StringVar(&o.output, "output", "table", "table or json")
	flag.StringVar(&o.scratch, "scratch", "/var/tmp", "directory for scratch files, not on an overlay")
	flag.IntVar(&o.pods, "pods", 20, "pods that run at a time where memory, processes and restarts are measured")
	flag.IntVar(&o.rounds, "rounds", 20, "rounds of each timed measurement")
	flag.IntVar(&o.flood, "flood", 3, "seconds that the log measurement writes")
	flag.StringVar(&o.only, "only", "", "measure only what has this in its name")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.output != "table" && o.output != "json" {
		return fmt.Errorf("--output %s: want table or json", o.output)
	}
	dir, err := os.MkdirTemp(o.scratch, "cri-engine-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	registry, err := serveImage(ctx, dir, o.registry)
	if err != nil {
		return err
	}
	defer registry.Stop()
	subjects, err := openSubjects(ctx, o, dir, registry.Addr)
	defer func() {
		for _, s := range subjects {
			err = errors.Join(err, s.close())
		}
	}()
	if err != nil {
		return err
	}
	results := measureAll(ctx, o, subjects)
	if o.output == "json" {
		return printJSON(os.Stdout, results)
	}
	return printTable(os.Stdout, subjects, results)
}

// openSubjects connects to the endpoints, or starts our engine, and makes a
// subject for each handler on each.
func openSubjects(ctx context.Context, o options, dir, registry string) ([]*subject, error) {
	var runtimes []*subject
	for item := range strings.SplitSeq(o.endpoints, ",") {
		if item != "own" {
			continue
		}
		own, err := startOwn(ctx, o.bin, filepath.Join(dir, "engine"), registry, o.handlers)
		if own != nil {
			runtimes = append(runtimes, own)
		}
		if err != nil {
			return runtimes, err
		}
	}
	for item := range strings.SplitSeq(o.endpoints, ",") {
		if item == "own" {
			continue
		}
		s, err := connect(ctx, item, registry)
		if err != nil {
			return runtimes, err
		}
		runtimes = append(runtimes, s)
	}
	if o.handlers == "" {
		return runtimes, prepare(ctx, dir, runtimes)
	}
	var subjects []*subject
	for _, r := range runtimes {
		for i, h := range strings.Split(o.handlers, ",") {
			s := *r
			s.handler, s.name = h, r.name+"/"+h
			s.closes = i == 0
			subjects = append(subjects, &s)
		}
	}
	return subjects, prepare(ctx, dir, subjects)
}

func prepare(ctx context.Context, dir string, subjects []*subject) error {
	for i, s := range subjects {
		s.logs = filepath.Join(dir, fmt.Sprintf("logs%d", i))
		if err := s.pull(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}
