package conf

import (
	"testing"

	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

func TestTheSamplesAreWhatTheirManualsSay(t *testing.T) {
	t.Run("registries.conf sends short names to one registry", func(t *testing.T) {
		sys := &types.SystemContext{SystemRegistriesConfPath: "registries.conf", SystemRegistriesConfDirPath: t.TempDir()}
		registries, err := sysregistriesv2.UnqualifiedSearchRegistries(sys)
		if err != nil {
			t.Fatal(err)
		}
		if len(registries) != 1 || registries[0] != "docker.io" {
			t.Errorf("short names go to %q, want docker.io alone", registries)
		}
	})
	t.Run("policy.json is a policy", func(t *testing.T) {
		policy, err := signature.NewPolicyFromFile("policy.json")
		if err != nil {
			t.Fatal(err)
		}
		if len(policy.Default) != 1 || len(policy.Transports["docker"]) != 2 {
			t.Errorf("read as %+v", policy)
		}
	})
}
