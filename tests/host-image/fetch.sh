#!/bin/bash
# mmdebstrap runs it as a customize hook with the tree's root: leaves in it what guest.sh unpacks, the only thing that it needs
# from a network beside the installed packages.
set -euo pipefail
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
place=$1/var/cache/testhost
kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
mkdir -p "$place"
cd "$place"
# as the user that fetches packages, apt may not write here
apt-get download -qq -o APT::Sandbox::User=root firewalld "$kernel"
