#!/bin/sh
# Generates the Go code of engine.proto, with protoc from PATH and the plugins
# of the versions in go.mod.
set -eu
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
for plugin in protoc-gen-go protoc-gen-go-grpc; do
	printf '#!/bin/sh\nexec go tool %s "$@"\n' "$plugin" >"$plugins/$plugin"
	chmod 755 "$plugins/$plugin"
done
PATH="$plugins:$PATH" protoc --proto_path=. \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	engine.proto
