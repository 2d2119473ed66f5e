package oci

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxAccountFile bounds an image's /etc/passwd and /etc/group.
	maxAccountFile = 1 << 20
	// maxID is the largest uid or gid: all ones means "no change" to the kernel.
	maxID = math.MaxUint32 - 1
)

// resolveUser decides who the process runs as: the request's user, else the
// image's, looked up in the root filesystem's own accounts.
func (b *builder) resolveUser() error {
	want, err := b.wantedUser()
	if err != nil {
		return err
	}
	accounts := accounts{root: b.RootFS}
	u, err := want.lookUp(&accounts)
	if err != nil {
		return err
	}
	b.setHome(u.home)
	groups := []int64{u.gid}
	if b.sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && u.name != "" {
		members, err := accounts.groupsOf(u.name)
		if err != nil {
			return err
		}
		groups = append(groups, members...)
	}
	for i, g := range b.sc.GetSupplementalGroups() {
		if err := checkID(fmt.Sprintf("%ssupplemental_groups[%d]", securityContext, i), g); err != nil {
			return err
		}
		groups = append(groups, g)
	}
	b.user = User{UID: u.uid, GID: u.gid, AdditionalGroups: unique(groups)}
	b.spec.Process.User = specs.User{UID: uint32(u.uid), GID: uint32(u.gid)}
	for _, g := range b.user.AdditionalGroups {
		// The primary group is among them: else a file's "others" bits could give the
		// process more than its group's do (CVE-2022-36109).
		b.spec.Process.User.AdditionalGids = append(b.spec.Process.User.AdditionalGids, uint32(g))
	}
	return nil
}

// setHome adds HOME unless the image or the request has it. OCI runtimes differ
// in what they do for a user without an account; "/" is what runc's users know.
func (b *builder) setHome(home string) {
	if slices.ContainsFunc(b.spec.Process.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return
	}
	if !strings.HasPrefix(home, "/") || strings.ContainsRune(home, 0) || !utf8.ValidString(home) {
		home = "/"
	}
	b.spec.Process.Env = append(b.spec.Process.Env, "HOME="+home)
}

// userWanted is a user and a group as names or numbers, "" for none.
type userWanted struct {
	user, group string
	// userField and groupField name the fault.
	userField, groupField string
	// mustExist: the user is a name, even if it looks like a number.
	mustExist bool
}

func (b *builder) wantedUser() (userWanted, error) {
	sc := b.sc
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case runtimeapi.SupplementalGroupsPolicy_Merge, runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return userWanted{}, invalid(securityContext+"supplemental_groups_policy", policy.String(), "unknown policy")
	}
	var want userWanted
	switch id, name := sc.GetRunAsUser(), sc.GetRunAsUsername(); {
	case id != nil && name != "":
		return want, invalid(securityContext+"run_as_username", name, "only one of run_as_user and run_as_username may be set")
	case id != nil:
		want = userWanted{user: strconv.FormatInt(id.GetValue(), 10), userField: securityContext + "run_as_user"}
		if err := checkID(want.userField, id.GetValue()); err != nil {
			return want, err
		}
	case name != "":
		want = userWanted{user: name, userField: securityContext + "run_as_username", mustExist: true}
	case sc.GetRunAsGroup() != nil:
		return want, invalid(securityContext+"run_as_group", "", "needs run_as_user or run_as_username")
	default:
		user, group, _ := strings.Cut(b.Image.User, ":")
		return userWanted{user: user, group: group, userField: "the image's user", groupField: "the image's group"}, nil
	}
	if g := sc.GetRunAsGroup(); g != nil {
		want.group, want.groupField = strconv.FormatInt(g.GetValue(), 10), securityContext+"run_as_group"
		return want, checkID(want.groupField, g.GetValue())
	}
	return want, nil
}

// lookUp resolves user and group. The account has no name and no home for a
// number that passwd(5) does not have; its gid is the group wanted, else its own.
func (w userWanted) lookUp(a *accounts) (account, error) {
	if w.user == "" {
		w.user = "0"
	}
	number, isNumber, err := parseID(w.userField, w.user)
	if w.mustExist {
		isNumber, err = false, nil
	}
	if err != nil {
		return account{}, err
	}
	u, found, err := a.user(func(u account) bool {
		return isNumber && u.uid == number || !isNumber && u.name == w.user
	})
	if err != nil {
		return account{}, err
	}
	if !found && !isNumber {
		return account{}, invalid(w.userField, w.user, "no such user in the image's /etc/passwd")
	}
	if !found {
		u.uid = number
	}
	if w.group != "" {
		u.gid, err = w.lookUpGroup(a)
	}
	return u, err
}

func (w userWanted) lookUpGroup(a *accounts) (int64, error) {
	number, isNumber, err := parseID(w.groupField, w.group)
	if isNumber || err != nil {
		return number, err
	}
	g, found, err := a.group(w.group)
	if err == nil && !found {
		err = invalid(w.groupField, w.group, "no such group in the image's /etc/group")
	}
	return g, err
}

// parseID tells whether s is a number, and fails when it is one that no id can have.
func parseID(field, s string) (id int64, isNumber bool, err error) {
	id, err = strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, false, nil
	}
	if err != nil {
		return 0, true, invalid(field, s, "not an id between 0 and %d", uint32(maxID))
	}
	return id, true, checkID(field, id)
}

func checkID(field string, id int64) error {
	if id < 0 || id > maxID {
		return invalid(field, strconv.FormatInt(id, 10), "not an id between 0 and %d", uint32(maxID))
	}
	return nil
}

// unique keeps the first of each, in order.
func unique(ids []int64) []int64 {
	var out []int64
	for _, id := range ids {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// account is a line of passwd(5).
type account struct {
	name     string
	uid, gid int64
	home     string
}

// accounts are the users and groups of a root filesystem, which is whatever an
// image's author put there: links are followed inside of it only, and a file
// that is no regular one, or is too large, is refused.
type accounts struct{ root string }

func (a *accounts) user(match func(account) bool) (account, bool, error) {
	data, err := a.read("/etc/passwd")
	if err != nil {
		return account{}, false, err
	}
	for f := range records(data, 4) {
		u := account{name: f[0]}
		if len(f) > 5 {
			u.home = f[5]
		}
		var ok1, ok2 bool
		u.uid, ok1 = fileID(f[2])
		u.gid, ok2 = fileID(f[3])
		if ok1 && ok2 && match(u) {
			return u, true, nil
		}
	}
	return account{}, false, nil
}

func (a *accounts) group(name string) (int64, bool, error) {
	data, err := a.read("/etc/group")
	if err != nil {
		return 0, false, err
	}
	for f := range records(data, 3) {
		if gid, ok := fileID(f[2]); ok && f[0] == name {
			return gid, true, nil
		}
	}
	return 0, false, nil
}

// groupsOf returns the groups that list the user as a member.
func (a *accounts) groupsOf(user string) ([]int64, error) {
	data, err := a.read("/etc/group")
	if err != nil {
		return nil, err
	}
	return groupsOf(data, user), nil
}

func groupsOf(data, user string) []int64 {
	var gids []int64
	for f := range records(data, 4) {
		gid, ok := fileID(f[2])
		if ok && slices.Contains(strings.Split(f[3], ","), user) {
			gids = append(gids, gid)
			if len(gids) == maxGroups {
				break
			}
		}
	}
	return gids
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// records yields the fields of each line that has at least so many.
func records(data string, fields int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(data) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) < fields || f[0] == "" {
				continue
			}
			if !yield(f) {
				return
			}
		}
	}
}

// fileID is false for what is no id: the line that has it does not count.
func fileID(s string) (int64, bool) {
	id, isNumber, err := parseID("", s)
	return id, isNumber && err == nil
}

// read returns a file of the root filesystem, "" where there is none.
func (a *accounts) read(name string) (string, error) {
	data, err := a.readFile(name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s of the root filesystem: %w", name, err)
	}
	return data, nil
}

func (a *accounts) readFile(name string) (string, error) {
	// The handle is only a place (O_PATH): a device or a FIFO is not opened before it is known what it is.
	handle, err := pathrs.OpenInRoot(a.root, name)
	if err != nil {
		return "", err
	}
	defer handle.Close()
	switch st, err := handle.Stat(); {
	case err != nil:
		return "", err
	case !st.Mode().IsRegular():
		return "", errors.New("not a regular file")
	case st.Size() > maxAccountFile:
		return "", fmt.Errorf("%d bytes, more than the %d that are read", st.Size(), maxAccountFile)
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readBounded(f, maxAccountFile)
}

// readBounded fails for a file that has more than so many bytes.
func readBounded(r io.Reader, most int64) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return "", err
	}
	if int64(len(data)) > most {
		return "", fmt.Errorf("more than %d bytes", most)
	}
	return string(data), nil
}
