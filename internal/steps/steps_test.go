package steps

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestRun(t *testing.T) {
	boom := errors.New("boom")
	var log []string
	step := func(name string, do, undo error) Step {
		return Step{
			Name: name,
			Do:   func(context.Context) error { log = append(log, "do "+name); return do },
			Undo: func(ctx context.Context) error {
				if ctx.Err() != nil {
					t.Errorf("undo %s runs with a context that has ended", name)
				}
				log = append(log, "undo "+name)
				return undo
			},
		}
	}
	cases := []struct {
		name string
		list []Step
		want []string
		errs []error
	}{
		{"all steps done, nothing undone", []Step{step("a", nil, nil), step("b", nil, nil)},
			[]string{"do a", "do b"}, nil},
		{"a failed step undoes those before it in reverse", []Step{step("a", nil, nil), step("b", nil, nil), step("c", boom, nil)},
			[]string{"do a", "do b", "do c", "undo b", "undo a"}, []error{boom}},
		{"an undo that fails is told and stops no other", []Step{step("a", nil, nil), step("b", nil, errors.ErrUnsupported), step("c", boom, nil)},
			[]string{"do a", "do b", "do c", "undo b", "undo a"}, []error{boom, errors.ErrUnsupported}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			log = nil
			err := Run(context.Background(), "Test", c.list)
			if !slices.Equal(log, c.want) {
				t.Errorf("ran %q, want %q", log, c.want)
			}
			if (err != nil) != (len(c.errs) > 0) {
				t.Errorf("error %v, want %v", err, c.errs)
			}
			for _, want := range c.errs {
				if !errors.Is(err, want) {
					t.Errorf("error %v does not hold %v", err, want)
				}
			}
		})
	}
	t.Run("a context that ends between steps undoes what was done", func(t *testing.T) {
		log = nil
		ctx, cancel := context.WithCancel(context.Background())
		a := step("a", nil, nil)
		err := Run(ctx, "Test", []Step{
			{Name: "a", Do: func(ctx context.Context) error { cancel(); return a.Do(ctx) }, Undo: a.Undo},
			step("b", nil, nil),
		})
		if want := []string{"do a", "undo a"}; !slices.Equal(log, want) || !errors.Is(err, context.Canceled) {
			t.Errorf("ran %q with error %v, want %q and a cancellation", log, err, want)
		}
	})
}

func TestPoints(t *testing.T) {
	Register("ZTest", "one", "two")
	want := []string{"ZTest/one:before", "ZTest/one:after", "ZTest/two:before", "ZTest/two:after"}
	if got := Points(); !slices.Equal(got[len(got)-4:], want) {
		t.Errorf("got %q, want them to end in %q", got, want)
	}
}
