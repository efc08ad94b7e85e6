// Package bench measures the module's main jobs beside the floor that the
// machine sets, in one run, and reports the ratios. "make bench" runs it.
package bench
