package image

import (
	"fmt"
	"regexp"
	"strings"
)

// Version is an immutable version of a service: semantic version and git commit, written v1.4.0-3f2a1c9. It is used as
// image tag and as Kubernetes label, which is why it has at most 63 characters and no build metadata (+…).
type Version struct {
	// Semantic is the semantic version with its v, such as v1.4.0 or v2.0.0-rc.1.
	Semantic string `json:"semantic"`
	// Commit is the git commit, 7 to 40 lower-case hex digits.
	Commit string `json:"commit"`
}

// maxVersionLength is the limit of a Kubernetes label value.
const maxVersionLength = 63

var (
	semanticVersion = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)
	commitHash      = regexp.MustCompile(`^[0-9a-f]{7,40}$`)
	leadingZero     = regexp.MustCompile(`^0\d+$`)
)

// ParseVersion reads v1.4.0-3f2a1c9: the last part is the commit, the rest the semantic version. Errors wrap ErrReference.
func ParseVersion(text string) (Version, error) {
	dash := strings.LastIndexByte(text, '-')
	if dash < 0 {
		return Version{}, fmt.Errorf("%w: version %q must be a semantic version and a git commit, like v1.4.0-3f2a1c9", ErrReference, text)
	}
	return NewVersion(text[:dash], text[dash+1:])
}

// NewVersion puts a semantic version (with or without its v) and a git commit together; a commit longer than twelve
// digits is shortened to twelve. Errors wrap ErrReference.
func NewVersion(semantic, commit string) (Version, error) {
	if !strings.HasPrefix(semantic, "v") {
		semantic = "v" + semantic
	}
	if strings.Contains(semantic, "+") {
		return Version{}, fmt.Errorf("%w: version %q has build metadata (+…), which image tags cannot hold", ErrReference, semantic)
	}
	if !semanticVersion.MatchString(semantic) || zeroPadded(semantic) {
		return Version{}, fmt.Errorf("%w: %q is no semantic version; write it like v1.4.0 (and the whole like v1.4.0-3f2a1c9)", ErrReference, semantic)
	}
	if !commitHash.MatchString(commit) {
		return Version{}, fmt.Errorf("%w: %q is no git commit; 7 to 40 lower-case hex digits are expected, like v1.4.0-3f2a1c9", ErrReference, commit)
	}
	if len(commit) > 12 {
		commit = commit[:12]
	}
	v := Version{Semantic: semantic, Commit: commit}
	if len(v.String()) > maxVersionLength {
		return Version{}, fmt.Errorf("%w: version %q has more than %d characters, the limit of a Kubernetes label", ErrReference, v, maxVersionLength)
	}
	return v, nil
}

// String is the version as it is written in tags and labels.
func (v Version) String() string { return v.Semantic + "-" + v.Commit }

// zeroPadded says whether a numeric part of the pre-release starts with a superfluous zero, which semver forbids.
func zeroPadded(semantic string) bool {
	_, pre, _ := strings.Cut(semantic, "-")
	for part := range strings.SplitSeq(pre, ".") {
		if leadingZero.MatchString(part) {
			return true
		}
	}
	return false
}
