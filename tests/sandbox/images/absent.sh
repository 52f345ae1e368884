#!/bin/sh
# Installs an empty package into the root file system $1 that provides all other arguments, each in the version that
# the archive has, so that whatever depends on them is satisfied without them.
set -eu
root=$1
shift
provides=
for package in "$@"; do
	version=$(APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-cache show --no-all-versions "$package" | sed -n 's/^Version: //p' | head -n 1)
	if [ -z "$version" ]; then
		echo "absent: the archive has no package $package" >&2
		exit 1
	fi
	provides="${provides:+$provides, }$package (= $version)"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/package/DEBIAN"
cat >"$work/package/DEBIAN/control" <<END
Package: greenlight-left-out
Version: 1
Architecture: all
Maintainer: Greenlight
Provides: $provides
Description: stands for packages that this image does without
END
dpkg-deb --root-owner-group --build "$work/package" "$root/greenlight-left-out.deb" >/dev/null
chroot "$root" dpkg --install /greenlight-left-out.deb
rm "$root/greenlight-left-out.deb"
