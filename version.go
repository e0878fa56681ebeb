package overlayd

import "runtime/debug"

// Version is the version of this build: what the linker was told with
// -X github.com/overlayd/overlayd.Version=..., else the module's version, else
// "devel".
var Version = ""

// BuildVersion returns the version as Status tells it: Version, or what the
// build itself knows.
func BuildVersion() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Path == modulePath && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

const modulePath = "github.com/overlayd/overlayd"
