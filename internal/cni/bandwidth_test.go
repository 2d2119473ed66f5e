package cni

import (
	"errors"
	"math"
	"testing"
)

func TestParseQuantity(t *testing.T) {
	cases := map[string]uint64{
		"10M": 10_000_000, "1k": 1_000, "1.5G": 1_500_000_000, "1Ki": 1024, "2Mi": 2 << 20, "0.5Gi": 1 << 29, "100": 100,
		"+7": 7, ".5k": 500, "5.": 5, "1e3": 1000, "1E3": 1000, "12e-1": 2, "1E": 1_000_000_000_000_000_000,
		"1500m": 2, "1n": 1, "0": 0, "1P": 1_000_000_000_000_000, "1.0000000001k": 1001, "1e+3": 1000,
	}
	for text, want := range cases {
		if got, err := parseQuantity(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "M", "10 M", "10m3", "-1M", "1..5", "1.5.5", ".", "10MM", "0x10", "1e", "1e1234567", "1e+-3", "1e++3", "e3", "10K", "Inf", "NaN",
		"1_000", "1/2", "100E", "99999999999999999999", "11111111111111111111111111111111111111", "1e99", "٣",
	} {
		if got, err := parseQuantity(text); err == nil {
			t.Errorf("%q was taken for %d", text, got)
		}
	}
}

func TestBandwidthOf(t *testing.T) {
	none, err := bandwidthOf(map[string]string{"other": "1"})
	if none != nil || err != nil {
		t.Errorf("without annotations: %v, %v", none, err)
	}
	got, err := bandwidthOf(map[string]string{IngressBandwidthAnnotation: "100M", EgressBandwidthAnnotation: "1k"})
	want := bandwidth{IngressRate: 100_000_000, IngressBurst: 100_000_000, EgressRate: 1000, EgressBurst: minBurst}
	if err != nil || *got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	got, err = bandwidthOf(map[string]string{EgressBandwidthAnnotation: "1P"})
	want = bandwidth{EgressRate: 1_000_000_000_000_000, EgressBurst: math.MaxInt32}
	if err != nil || *got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, text := range []string{"999", "0", "1001T", "fast", ""} {
		if got, err := bandwidthOf(map[string]string{IngressBandwidthAnnotation: text}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q gave %+v, %v", text, got, err)
		}
	}
}

func FuzzParseQuantity(f *testing.F) {
	for _, text := range []string{"10M", "1.5Gi", "1e-3", "0.000001n", "9E", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := parseQuantity(text); err == nil && got > math.MaxInt64 {
			t.Errorf("%q is %d", text, got)
		}
	})
}
