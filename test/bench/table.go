package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

func printJSON(w io.Writer, results []*result) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(results)
}

// printTable prints a line per name and subject: median, 90th percentile, and
// how many times the first subject's median it is.
func printTable(w io.Writer, subjects []*subject, results []*result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "MEASURED\tRUNTIME\tMEDIAN\tP90\tUNIT\tROUNDS\tRATIO")
	first := map[string]float64{}
	last := ""
	for _, r := range results {
		name := r.Name
		if name == last {
			name = ""
		}
		last = r.Name
		if len(r.Values) == 0 {
			fmt.Fprintf(tw, "%s\t%s\t-\t-\t%s\t0\t%s\n", name, r.Subject, r.Unit, clip(r.Error))
			continue
		}
		median := percentile(r.Values, 50)
		ratio := ""
		if base, ok := first[r.Name]; !ok {
			first[r.Name] = median
		} else if base != 0 {
			ratio = fmt.Sprintf("%.2f", median/base)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", name, r.Subject, number(median), number(percentile(r.Values, 90)), r.Unit, len(r.Values), ratio)
	}
	if len(subjects) > 1 {
		fmt.Fprintf(tw, "\nRATIO is to %s; above 1 means slower, or more, or for the log faster.\n", subjects[0].name)
	}
	return tw.Flush()
}

func clip(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return s
}

func number(x float64) string {
	switch {
	case x >= 100 || x <= -100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10 || x <= -10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// percentile by the nearest rank.
func percentile(values []float64, p int) float64 {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(rank, 1)-1]
}
