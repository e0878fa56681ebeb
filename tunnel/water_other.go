//go:build !linux

package tunnel

import (
	"errors"
	"fmt"
	"runtime"
)

func openWater(name string, _ int) (Device, error) {
	return nil, fmt.Errorf("tunnel: open %s: TUN devices need Linux, this is %s: %w",
		name, runtime.GOOS, errors.ErrUnsupported)
}
