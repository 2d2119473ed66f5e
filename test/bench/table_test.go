package main

import (
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	ten := []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	for _, c := range []struct {
		name   string
		values []float64
		p      int
		want   float64
	}{
		{"the median of ten values is the fifth", ten, 50, 5},
		{"the 90th percentile of ten values is the ninth", ten, 90, 9},
		{"of one value every percentile is it", []float64{7}, 90, 7},
		{"the values need no order and are left in theirs", ten, 100, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := percentile(c.values, c.p); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	if ten[0] != 10 {
		t.Error("the values were sorted in place")
	}
}

func TestPrintTable(t *testing.T) {
	var out strings.Builder
	err := printTable(&out, []*subject{{name: "a"}, {name: "b"}}, []*result{
		{Name: "pod start", Unit: "ms", Subject: "a", Values: []float64{10, 20, 30}},
		{Name: "pod start", Unit: "ms", Subject: "b", Values: []float64{40}},
		{Name: "exec", Unit: "ms", Subject: "a", Error: "refused"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pod start  a        20.0    30.0  ms", "40.0    40.0  ms    1       2.00", "exec       a        -       -     ms    0       refused"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}
