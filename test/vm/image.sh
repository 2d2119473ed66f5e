# How the recipe's image is made and found. Sourced by vm.sh, which sets $here, $guest and $cache.
# shellcheck shell=bash disable=SC2154,SC2016

# image_dir VARIANT: where the image of the present recipe is, or will be.
image_dir() {
	local hash
	hash=$(cd "$here" && sha256sum recipe.sh image.sh guest/* | sha256sum | cut -c1-16)
	echo "$cache/$1-$hash"
}

# debian_mirror: the site among apt's own that has the suite.
debian_mirror() {
	local site
	for site in $(apt-get indextargets --format '$(SITE)' | sort -u); do
		if /usr/lib/apt/apt-helper -qq download-file "${site%/}/dists/$suite/InRelease" "$1/InRelease" >/dev/null 2>&1; then
			echo "$site"
			return
		fi
	done
	fail "none of the sites in apt's configuration has Debian's $suite"
}

# bootstrap ROOT VARIANT: Debian in a directory.
bootstrap() {
	local root=$1 more="packages_${2}[@]" include proxy=
	include=$(printf '%s\n' "${packages[@]}" "${!more}" | paste -sd,)
	eval "$(apt-config shell proxy Acquire::http::Proxy)"
	[ -z "$proxy" ] || [ "$proxy" = DIRECT ] || export http_proxy=${http_proxy:-$proxy}
	mkdir -p "$cache/debs" # packages are fetched once for all images
	# INITRD: no ramdisk of Debian's, see guest/init.
	INITRD=No debootstrap --variant=minbase --cache-dir="$cache/debs" --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
		--include="$include" "$suite" "$root" "$(debian_mirror "$(dirname "$root")")"
}

# make_initrd ROOT OUT: busybox, the modules that reach the root disk in the order of their needs, guest/init.
make_initrd() {
	local root=$1 out=$2 version module dir=$1.initrd
	version=$(cd "$root/lib/modules" && echo *)
	mkdir -p "$dir"/{bin,dev,proc,root,modules}
	cp "$root/usr/bin/busybox" "$dir/bin/"
	install -m 0755 "$guest/init" "$dir/init"
	for module in virtio_pci virtio_blk ext4; do
		chroot "$root" modprobe --show-depends --set-version "$version" "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
		case $module in
		*.xz) xz -dc "$root$module" >"$dir/modules/$(basename "$module" .xz)" ;;
		*.zst) zstd -qdc "$root$module" >"$dir/modules/$(basename "$module" .zst)" ;;
		*) cp "$root$module" "$dir/modules/" ;;
		esac
		module=${module%.xz}
		basename "${module%.zst}" >>"$dir/modules/order"
	done
	[ -s "$dir/modules/order" ] || fail "the kernel's modules for disks were not found"
	mkdir "$root/.initrd"
	cp -a "$dir/." "$root/.initrd/"
	chroot "$root" sh -c 'cd /.initrd && find . | cpio --quiet -o -H newc' | gzip -1 >"$out"
	rm -rf "$root/.initrd"
}

# make_image DIR VARIANT: the root disk, kernel and ramdisk in DIR.
make_image() {
	local dir=$1 root=$1/root
	bootstrap "$root" "$2"
	make_initrd "$root" "$dir/initrd"
	cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
	customize "$root" "$2"
	mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 -m 0 -L root -d "$root" "$dir/root.ext4" "${root_size}M"
}

# discard DIR...: removes what a making left; one that was killed left mounts, and what is
# mounted must not be removed.
discard() {
	local dir at
	for dir; do
		[ -d "$dir" ] || continue
		awk -v below="$dir/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r at; do
			umount "$at"
		done
		rm -rf --one-file-system "$dir"
	done
}

# image VARIANT: prints the image's directory; makes the image where there is none.
image() {
	local variant=$1 dir new
	dir=$(image_dir "$variant")
	mkdir -p "$cache"
	# Another vm.sh may be making it.
	exec 9>"$cache/$variant.lock"
	flock 9
	if [ ! -e "$dir/root.ext4" ]; then
		[ "$(id -u)" = 0 ] || fail "the image is made by root"
		"$here/../../hack/setup.sh" vm >&2
		echo "vm: making the $variant image in $dir (once per recipe, some minutes)" >&2
		# With the lock held nobody else makes this variant.
		discard "$cache/new-$variant-"*
		new=$(mktemp -d "$cache/new-$variant-XXXXXX")
		# In the background, since bash minds no error in what stands before "||".
		(make_image "$new" "$variant") >"$new/log" 2>&1 &
		if ! wait $!; then
			tail -n 20 "$new/log" >&2
			mv "$new/log" "$cache/failed.log"
			discard "$new"
			fail "the image could not be made; the whole log is $cache/failed.log"
		fi
		discard "$new/root" "$new/root.initrd"
		mv "$new" "$dir"
		# Images of recipes that nobody used for two weeks, and packages of as long ago.
		find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name debs ! -name 'new-*' -mtime +14 -exec rm -rf --one-file-system {} +
		find "$cache/debs" -type f -mtime +14 -delete
	fi
	touch "$dir"
	exec 9>&-
	echo "$dir"
}
