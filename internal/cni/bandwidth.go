package cni

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// The annotations that limit a pod's traffic, in bits per second, as seen from
// the pod. They are Kubernetes' own, read by every CRI runtime.
const (
	IngressBandwidthAnnotation = "kubernetes.io/ingress-bandwidth"
	EgressBandwidthAnnotation  = "kubernetes.io/egress-bandwidth"
)

// The range that Kubernetes allows.
const (
	minBandwidth = 1_000
	maxBandwidth = 1_000_000_000_000_000
)

// A token bucket must hold a whole packet, and one packet that the kernel has
// yet to segment is up to 64 KiB: with less it would never pass. Above, a
// second's worth, and no more than the bandwidth plugin takes.
const (
	minBurst = 256 * 1024 * 8
	maxBurst = math.MaxInt32
)

// bandwidth is the value of CNI's "bandwidth" capability: rates in bits per
// second, bursts in bits, 0 for no limit.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// bandwidthOf reads the limits from a pod's annotations; nil for none.
func bandwidthOf(annotations map[string]string) (*bandwidth, error) {
	ingress, err := bandwidthAnnotation(annotations, IngressBandwidthAnnotation)
	if err != nil {
		return nil, err
	}
	egress, err := bandwidthAnnotation(annotations, EgressBandwidthAnnotation)
	if err != nil {
		return nil, err
	}
	if ingress == 0 && egress == 0 {
		return nil, nil
	}
	return &bandwidth{
		IngressRate: ingress, IngressBurst: burstFor(ingress),
		EgressRate: egress, EgressBurst: burstFor(egress),
	}, nil
}

func bandwidthAnnotation(annotations map[string]string, name string) (uint64, error) {
	text, ok := annotations[name]
	if !ok {
		return 0, nil
	}
	rate, err := parseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("%w: annotation %s: %w", ErrInvalid, name, err)
	}
	if rate < minBandwidth || rate > maxBandwidth {
		return 0, fmt.Errorf("%w: annotation %s: %q is not from 1k to 1P", ErrInvalid, name, text)
	}
	return rate, nil
}

func burstFor(rate uint64) uint64 {
	if rate == 0 {
		return 0
	}
	return min(max(rate, minBurst), maxBurst)
}

// suffixes of Kubernetes quantities: the powers of ten and of two.
var suffixes = map[string]*big.Rat{
	"n": ratio(1, 1_000_000_000), "u": ratio(1, 1_000_000), "m": ratio(1, 1_000), "": ratio(1, 1),
	"k": ratio(1_000, 1), "M": ratio(1_000_000, 1), "G": ratio(1_000_000_000, 1),
	"T": ratio(1_000_000_000_000, 1), "P": ratio(1_000_000_000_000_000, 1), "E": ratio(1_000_000_000_000_000_000, 1),
	"Ki": ratio(1<<10, 1), "Mi": ratio(1<<20, 1), "Gi": ratio(1<<30, 1),
	"Ti": ratio(1<<40, 1), "Pi": ratio(1<<50, 1), "Ei": ratio(1<<60, 1),
}

func ratio(a, b int64) *big.Rat { return big.NewRat(a, b) }

// parseQuantity reads a Kubernetes resource quantity that isn't negative, such
// as "10M", "1.5Gi", "2e6", and rounds it up to a whole number.
func parseQuantity(text string) (uint64, error) {
	const maxLen = 32 // so that no arithmetic is about numbers that nobody means
	if text == "" || len(text) > maxLen {
		return 0, fmt.Errorf("%q is no quantity", truncate(text, maxLen))
	}
	number := strings.TrimPrefix(text, "+")
	end := strings.IndexFunc(number, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(number)
	}
	digits, suffix := number[:end], number[end:]
	if strings.Trim(digits, ".") == "" || strings.Count(digits, ".") > 1 {
		return 0, fmt.Errorf("%q is no quantity", text)
	}
	factor, ok := suffixes[suffix]
	if !ok {
		var err error
		if factor, err = exponent(suffix); err != nil {
			return 0, fmt.Errorf("%q is no quantity", text)
		}
	}
	value, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, fmt.Errorf("%q is no quantity", text)
	}
	return ceil(value.Mul(value, factor))
}

// exponent reads "e6", "E-3". Two digits are more than any quantity needs.
func exponent(suffix string) (*big.Rat, error) {
	var digits string
	if len(suffix) > 1 && (suffix[0] == 'e' || suffix[0] == 'E') {
		digits = suffix[1:]
	}
	unsigned := strings.TrimLeft(digits, "+-")
	if unsigned == "" || len(unsigned) > 2 || len(digits)-len(unsigned) > 1 || strings.Trim(unsigned, "0123456789") != "" {
		return nil, fmt.Errorf("%q is no exponent", suffix)
	}
	factor, ok := new(big.Rat).SetString("1e" + digits)
	if !ok {
		return nil, fmt.Errorf("%q is no exponent", suffix)
	}
	return factor, nil
}

func ceil(v *big.Rat) (uint64, error) {
	quotient, remainder := new(big.Int).QuoRem(v.Num(), v.Denom(), new(big.Int))
	if remainder.Sign() > 0 {
		quotient.Add(quotient, big.NewInt(1))
	}
	if !quotient.IsInt64() {
		return 0, fmt.Errorf("%s is too large", truncate(quotient.String(), 32))
	}
	return quotient.Uint64(), nil
}
