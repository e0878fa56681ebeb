package report

import "strings"

// family is a kind of paths, which have one colour in the page.
type family struct {
	Class, Title string
}

var (
	famNone   = family{"none", "no overlay"}
	famKernel = family{"kernel", "the kernel carries it"}
	famOurs   = family{"ours", "overlayd, in userspace"}
	famOther  = family{"other", "other programs"}

	families = []family{famNone, famKernel, famOurs, famOther}
)

// familyOf tells the family by the name of a path.
func familyOf(name string) family {
	switch {
	case name == "underlay":
		return famNone
	case name == "direct" || strings.HasPrefix(name, "kernel-"):
		return famKernel
	case strings.HasPrefix(name, "userspace-"):
		return famOurs
	}
	return famOther
}

// daemon is the program that carries a path's packets in userspace.
func daemon(name string) string {
	switch {
	case strings.HasPrefix(name, "userspace-"):
		return "overlayd"
	case strings.HasPrefix(name, "flannel-"):
		return "flanneld"
	}
	return name
}

// ends are the kernel's parts between a traffic program and what carries its packets, the
// program's side first.
func ends(name string) []string {
	if name == "underlay" {
		return []string{"TCP socket"}
	}
	return []string{"TCP socket", "veth + bridge"}
}

// carrier is what carries packets where no process does; "" if nothing stands between.
func carrier(name string) string {
	switch name {
	case "underlay":
		return ""
	case "direct":
		return "plain route"
	}
	return "VXLAN device"
}
