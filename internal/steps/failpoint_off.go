//go:build !failpoints

package steps

func hit(op, step, when string) {}
