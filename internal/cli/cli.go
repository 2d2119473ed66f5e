package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// DefaultEndpoint is where the engine listens when nothing else is said.
const DefaultEndpoint = "unix:///run/cri-engine/cri-engine.sock"

// program starts every message.
const program = "cri-engine"

// defaultTimeout of one call to the runtime. Those that may take long for good reasons (a pull, a
// command in a container) have none of their own.
const defaultTimeout = 2 * time.Minute

// interrupted is the exit code after Ctrl-C, as shells have it.
const interrupted = 128 + int(syscall.SIGINT)

// Commands returns the client's commands, for the root command of main.
//
// They write their own errors to stderr. The error that they return to main
// is an [*ExitError], or cobra's own for a wrong command line.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		pullCommand(), imagesCommand(), rmiCommand(),
		runCommand(), psCommand(), podsCommand(), logsCommand(), execCommand(),
		stopCommand(), rmCommand(), rmpCommand(),
		attachCommand(), portForwardCommand(),
		inspectCommand(), statsCommand(), eventsCommand(),
		doctorCommand(),
	}
}

// ExitError says with which code the program ends. What went wrong, if
// anything did, was told already.
type ExitError struct{ Code int }

// Error is for logs: people were told better.
func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// ExitCode returns the code that the program ends with for what a command
// returned: 0 for nil, the code of an [*ExitError], 1 for anything else.
func ExitCode(err error) int {
	var exit *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	default:
		return 1
	}
}

// options are the flags that every command has.
type options struct {
	endpoint string
	timeout  time.Duration
	output   string
	quiet    bool
}

// addEndpoint adds the flags of a command that talks to a runtime.
func (o *options) addEndpoint(cmd *cobra.Command, timeout time.Duration) {
	o.addEndpointOnly(cmd)
	cmd.Flags().DurationVar(&o.timeout, "timeout", timeout, "how long one call to the runtime may take; 0: no limit")
}

// addEndpointOnly is for a command whose time limit means something else.
func (o *options) addEndpointOnly(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.endpoint, "endpoint", endpointFromEnv(),
		"`SOCKET` of the runtime: unix:///PATH or /PATH (environment: CRI_ENGINE_ENDPOINT, CONTAINER_RUNTIME_ENDPOINT)")
}

// addOutput adds -o, and -q where quiet says what it shows.
func (o *options) addOutput(cmd *cobra.Command, quiet string) {
	cmd.Flags().StringVarP(&o.output, "output", "o", outputTable, "output `FORMAT`: table, json or yaml")
	mustComplete(cmd, "output", outputTable, outputJSON, outputYAML)
	if quiet != "" {
		cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, quiet)
	}
}

// endpointFromEnv is what --endpoint defaults to.
func endpointFromEnv() string {
	for _, name := range []string{"CRI_ENGINE_ENDPOINT", "CONTAINER_RUNTIME_ENDPOINT"} {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return DefaultEndpoint
}

// call is one run of a command that talks to a runtime.
type call struct {
	*options
	*client
	args        []string
	in          io.Reader
	out, errOut io.Writer
}

// connected makes a command's RunE of a function that needs a runtime.
func (o *options) connected(f func(ctx context.Context, c *call) error) func(*cobra.Command, []string) error {
	return run(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		if err := o.checkOutput(); err != nil {
			return err
		}
		client, err := dial(ctx, o.endpoint, o.timeout)
		if err != nil {
			return err
		}
		defer client.close()
		return f(ctx, &call{
			options: o, client: client, args: args,
			in: cmd.InOrStdin(), out: cmd.OutOrStdout(), errOut: cmd.ErrOrStderr(),
		})
	})
}

// run makes a RunE of a function: its context ends on Ctrl-C, its errors are
// told, a line each, and become an exit code.
func run(f func(context.Context, *cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		// From here on an error is not about the command line: no usage, and it is told here.
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		err := f(ctx, cmd, args)
		if err == nil {
			return nil
		}
		var exit *ExitError
		if errors.As(err, &exit) {
			return exit
		}
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return &ExitError{interrupted}
		}
		for _, line := range messages(err) {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", program, clean(line))
		}
		return &ExitError{1}
	}
}

// messages returns one message for each of the errors joined in err.
func messages(err error) []string {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []string
		for _, e := range joined.Unwrap() {
			all = append(all, messages(e)...)
		}
		return all
	}
	return []string{strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")}
}

// about says what was done to which object when it failed, unless the runtime said just that.
func about(verb, object string, err error) error {
	prefix := verb + " " + object + ": "
	if strings.HasPrefix(err.Error(), prefix) {
		return err
	}
	return fmt.Errorf("%s%w", prefix, err)
}

// parallel is how many objects a command works on at a time.
const parallel = 8

// each does f for every argument, several at a time, and returns all errors in the order of
// the arguments. done is what f gives back to be printed, in that order too.
func (c *call) each(ctx context.Context, verb string, names []string, f func(ctx context.Context, name string) (done string, err error)) error {
	results := make([]chan func() error, len(names))
	slots := make(chan struct{}, parallel)
	var workers sync.WaitGroup
	for i, name := range names {
		results[i] = make(chan func() error, 1)
		workers.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			done, err := f(ctx, name)
			results[i] <- func() error {
				if err != nil {
					return about(verb, name, err)
				}
				if done != "" {
					fmt.Fprintln(c.out, clean(done))
				}
				return nil
			}
		})
	}
	var errs []error
	for _, r := range results {
		errs = append(errs, (<-r)())
	}
	workers.Wait()
	return errors.Join(errs...)
}
