#!/usr/bin/env bash
# What the tests on real batch systems need, on a Debian machine, as root: the daemons of SLURM from the
# distribution, and those of HTCondor unpacked beside the system, since Debian 12 has no package of it.
#
# condor comes from the next release (CONDOR_SUITE), with its C library and what else it links to. Nothing of
# that is installed: the packages are unpacked under CONDOR_ROOT, and each program is told to look for its
# loader and libraries there.
set -euo pipefail

suite=${CONDOR_SUITE:-trixie}
root=${CONDOR_ROOT:-/opt/daskonic-condor}
libraries="libc6 libgcc-s1 libgomp1 libstdc++6 libpcre2-8-0 libssl3t64 libuuid1 libzstd1 zlib1g"

if ! (for program in slurmctld slurmd sbatch munged patchelf; do command -v "$program" || exit 1; done) >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge patchelf >/dev/null
fi

[ ! -e "$root/complete" ] || exit 0
rm -rf "$root"
mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial" "$root/debs"
mirror=$(grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null \
  | grep -v /archive/ | head -n 1 | tr -d ' ' || true)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} $suite main" > "$root/apt/sources.list"
touch "$root/apt/status"
private=(
  -o "Dir::Etc::sourcelist=$root/apt/sources.list" -o Dir::Etc::sourceparts=-
  -o "Dir::State=$root/apt" -o "Dir::State::status=$root/apt/status" -o "Dir::Cache=$root/apt"
  -o Acquire::Languages=none -o APT::Sandbox::User=root
)
apt-get "${private[@]}" update -qq
# shellcheck disable=SC2086
(cd "$root/debs" && apt-get "${private[@]}" download -qq condor $libraries)
for package in "$root"/debs/*.deb; do dpkg-deb -x "$package" "$root"; done

lib=$root/usr/lib/$(uname -m)-linux-gnu
is_elf() { [ ! -L "$1" ] && [ -f "$1" ] && [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]; }
for file in "$root"/usr/{bin,sbin}/condor_* "$root"/usr/libexec/condor/* "$root"/usr/lib/lib*.so* \
  "$lib"/lib{crypto,ssl,stdc++,gcc_s,gomp,pcre2-8,uuid,z,zstd}.so*; do
  is_elf "$file" || continue
  patchelf --force-rpath --set-rpath "$root/usr/lib:$lib" "$file"
  case $file in *.so | *.so.*) ;; *) patchelf --set-interpreter "$lib/ld-linux-x86-64.so.2" "$file" ;; esac
done
"$root/usr/bin/condor_version" >/dev/null  # runs at all
rm -rf "$root"/{apt,debs} "$root"/usr/share/{doc,man,locale}
touch "$root/complete"
