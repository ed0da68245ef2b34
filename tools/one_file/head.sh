#!/bin/sh
# rbee @VERSION@ as one file: this script, and behind it a gzipped tar archive with a Python, rbee and what it needs.
# The archive is unpacked once, into a folder named by its SHA-256, and run from there. `rbee self` tells about it.
# What is unpacked is checked first, and appears under its name whole: a folder of that name can be used as it is.
digest=@DIGEST@
skip=@SKIP@
needed_mb=@NEEDED_MB@
glibc=@GLIBC@
machine=@MACHINE@

fail() {
  printf 'rbee: %s\n' "$*" >&2
  exit 1
}

# "" where the Python inside runs here, else why not.
unsupported() {
  facts=$(uname -sm 2>/dev/null; getconf GNU_LIBC_VERSION 2>/dev/null)
  case $facts in
    "Linux $machine
glibc "*) ;;
    "Linux $machine"*) printf 'this file needs glibc %s, and this system has another C library' "$glibc"; return ;;
    *) printf 'this file is for Linux on %s, and this is %s' "$machine" "$(uname -sm)"; return ;;
  esac
  has=${facts##*glibc }
  minor=${has#*.}
  if [ "${has%%.*}" = "${glibc%%.*}" ] && [ "${minor%%.*}" -ge "${glibc#*.}" ]; then return; fi
  printf 'this file needs glibc %s or newer, and this system has %s; make one with a Python for %s (make dist)' \
    "$glibc" "$has" "$has"
}

# The folder that it is unpacked into where programs there can be run.
cache() {
  cache=${XDG_CACHE_HOME:-}
  home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
  case $cache in /*) ;; *) cache=${home:-/nonexistent}/.cache ;; esac
  printf %s "$cache/rbee-app"
}

# Whether a folder is ours and no link: who can put another in its place has to own one with our name on it.
own() { [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]; }

is_unpacked() { own "$1" && own "$1/$digest" && [ -x "$1/$digest/bin/python" ]; }

start() {
  image=$1/$digest
  shift
  exec "$image/bin/python" -I -X "rbee_file=$self" -m rbee "$@"
}

# Whether there is room in folder $1, or nobody knows.
has_room() {
  free_kb=$(df -Pk "$1" 2>/dev/null | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*% .*/\1/p')
  [ -z "$free_kb" ] || [ "$((free_kb / 1024))" -ge "$needed_mb" ]
}

# Whether it can be unpacked to folder $1 and run there; prints why not.
usable() {
  (umask 077 && mkdir -p "${1%/*}") 2>/dev/null
  mkdir -m 700 "$1" 2>/dev/null
  [ -d "$1" ] || { printf 'it cannot be made'; return 1; }
  own "$1" || { printf 'it belongs to somebody else'; return 1; }
  chmod 700 "$1" 2>/dev/null
  trial=$1/.trial-$$
  if ! (printf '#!/bin/sh\nexit 0\n' >"$trial" && chmod 700 "$trial") 2>/dev/null; then
    rm -f "$trial"
    printf 'it cannot be written, or its disk is full'
    return 1
  fi
  "$trial" 2>/dev/null
  ran=$?
  rm -f "$trial"
  [ "$ran" = 0 ] || { printf 'programs there cannot be run (noexec)'; return 1; }
  has_room "$1" || { printf 'it needs %s MB, and its disk is full' "$needed_mb"; return 1; }
}

archive() { tail -c "+$skip" -- "$self"; }

# Unpack into folder $1; prints why not. One at a time, where there is flock; else the first to be done counts.
unpack() (
  umask 077
  part=$1/.part-$$
  { exec 9>"$1/.lock"; } 2>/dev/null
  if command -v flock >/dev/null 2>&1 && flock 9; then
    is_unpacked "$1" && exit 0
    rm -rf "$1"/.part-*
  fi
  trap 'rm -rf "$part"' EXIT
  trap 'exit 130' HUP INT TERM
  printf 'rbee: unpacking to %s, once (%s MB)%s\n' "$1" "$needed_mb" "${reasons:+; not to$reasons}" >&2
  mkdir "$part" 2>/dev/null || { printf 'it cannot be written, or its disk is full'; exit 1; }
  if ! archive | tar -xzf - -C "$part" 2>"$part/said" ||
    ! printf 'home = %s\ninclude-system-site-packages = false\n' "$1/$digest/python/bin" 2>/dev/null >"$part/pyvenv.cfg"
  then
    has_room "$1" || { printf 'it needs %s MB, and its disk is full' "$needed_mb"; exit 1; }
    printf 'tar: %s' "$(sed -n '$p' "$part/said")"
    exit 1
  fi
  rm -f "$part/said"
  mv "$part" "$1/$digest" 2>/dev/null
  # Who was second has put a folder into the first one's, or failed to.
  rm -rf "$1/$digest/${part##*/}"
  is_unpacked "$1" || { printf 'it cannot be written'; exit 1; }
)

case $0 in
  /*) self=$0 ;;
  */*) self=$PWD/$0 ;;
  *) self=$(command -v -- "$0") ;;
esac
not_here=$(unsupported)
[ -z "$not_here" ] || fail "$not_here"
cache=$(cache)
if is_unpacked "$cache"; then start "$cache" "$@"; fi
user=$(id -u)
for place in "/var/tmp/rbee-app-$user" "/tmp/rbee-app-$user"; do
  if is_unpacked "$place"; then start "$place" "$@"; fi
done
for tool in tar gzip tail sha256sum; do
  command -v "$tool" >/dev/null 2>&1 || fail "unpacking needs \`$tool\`, which this system lacks"
done
found=$(archive 2>/dev/null | sha256sum)
[ "${found%% *}" = "$digest" ] || fail "$self is damaged: what is inside has another SHA-256. Copy or fetch it again"
reasons=
for place in "$cache" "/var/tmp/rbee-app-$user" "/tmp/rbee-app-$user"; do
  if why=$(usable "$place"); then
    why=$(unpack "$place")
    case $? in
      0) start "$place" "$@" ;;
      130) exit 130 ;;
    esac
  fi
  reasons="$reasons${reasons:+;} $place: ${why:-it cannot be written, or its disk is full}"
done
fail "there is no folder to unpack to:$reasons. Set XDG_CACHE_HOME to one with $needed_mb MB where programs can be run"
