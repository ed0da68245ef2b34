# What a node is like, as lines `key=value`; a key may come several times. POSIX sh; reads home_wanted.
# Nothing here may hang, write more than a moment's test file, or fail as a whole because one question has no answer.
LC_ALL=C; export LC_ALL
newline='
'
say() {
  case $2 in
    *"$newline"*) printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')" ;;
    *) printf '%s=%s\n' "$1" "$2" ;;
  esac
}
have() { command -v "$1" >/dev/null 2>&1; }
if have timeout && timeout 5 true 2>/dev/null; then
  soon() { timeout 5 "$@" 2>/dev/null; }
else
  soon() { "$@" 2>/dev/null; }
fi
# Whether a file in the folder $1 can be executed: yes, no, or nothing when none can be written there.
executes() {
  file=$1/.rbee-probe-$$
  (umask 077; set -C; printf '#!/bin/sh\nexit 0\n' >"$file") 2>/dev/null || return 0
  chmod 700 "$file"
  if "$file" 2>/dev/null; then echo yes; else echo no; fi
  rm -f "$file"
}

uid=$(id -u)
user=$(id -un 2>/dev/null)
entry=$(soon getent passwd "$uid")
if [ -z "$HOME" ]; then
  HOME=$(printf %s "$entry" | cut -d: -f6)
  [ -n "$HOME" ] || HOME=$(eval "printf %s ~$user")
fi
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/opt/homebrew/bin:$HOME/.local/bin
system=$(uname -s)
say system "$system"
say machine "$(uname -m)"
say user "$user"
say uid "$uid"
say user_home "$HOME"
shell=${entry##*:}
say shell "${shell:-$SHELL}"

# --- system
libc=$(soon getconf GNU_LIBC_VERSION)
if [ -z "$libc" ]; then
  for loader in /lib/ld-musl-*.so.1; do
    [ -x "$loader" ] && libc="musl $("$loader" 2>&1 | sed -n 's/^Version //p')"
  done
fi
[ "$system" != Darwin ] || libc="macos $(soon sw_vers -productVersion)"
say libc "$libc"
say os "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null | tr -d '"')"
say cores "$(soon nproc || soon getconf _NPROCESSORS_ONLN || soon sysctl -n hw.ncpu)"
if [ -r /proc/meminfo ]; then
  while read -r name value _; do
    case $name in
      MemTotal:) say ram_total_kb "$value" ;;
      MemAvailable:) say ram_available_kb "$value"; break ;;
    esac
  done </proc/meminfo
else
  say ram_total_bytes "$(soon sysctl -n hw.memsize)"
  say ram_available_pages "$(soon vm_stat | awk '/free|inactive|speculative/ { n += $NF } END { print n }')"
  say page_size "$(soon sysctl -n hw.pagesize)"
fi
for limit in memory.max memory.current memory/memory.limit_in_bytes memory/memory.usage_in_bytes; do
  [ -r "/sys/fs/cgroup/$limit" ] && read -r value <"/sys/fs/cgroup/$limit" && say "cgroup:$limit" "$value"
done
if [ -r /proc/sys/kernel/random/boot_id ]; then
  read -r boot_id </proc/sys/kernel/random/boot_id
else
  boot_id=$(soon sysctl -n kern.bootsessionuuid)
fi
say boot_id "$boot_id"

# --- where rbee lives
case $home_wanted in
  '') home=$HOME/.rbee/node ;;
  '~') home=$HOME ;;
  '~/'*) home=$HOME/${home_wanted#'~/'} ;;
  /*) home=$home_wanted ;;
  *) home=$HOME/$home_wanted ;;
esac
say home "$home"
parent=$home
while [ ! -d "$parent" ] && [ -n "$parent" ]; do parent=${parent%/*}; done
parent=${parent:-/}
[ -w "$parent" ] && say home_writable yes
say disk_free_kb "$(soon df -Pk "$parent" | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*% .*/\1/p')"
if [ -d "$home" ]; then
  say home_executes "$(executes "$home")"
elif [ -r /proc/mounts ]; then
  say home_mount "$(awk -v d="$parent/" '
    { m = $2; if (m != "/") m = m "/"; if (index(d, m) == 1 && length(m) >= n) { n = length(m); o = $4 } }
    END { print o }' /proc/mounts)"
fi
say tmp_executes "$(executes /tmp)"
for file in "$home"/payloads/*.zip; do [ -f "$file" ] && say payload "${file##*/}"; done
for folder in "$home"/runtimes/*/; do
  folder=${folder%/}
  [ -x "$folder/bin/python" ] && say runtime "${folder##*/}"
done
for file in "$home"/runtimes/uv-*; do [ -x "$file" ] && say uv "${file##*/}"; done

# --- where its sockets live
run_base() {
  [ -n "$1" ] && [ -d "$1" ] || return 0
  if [ -O "$1" ] && [ -w "$1" ]; then say run_base "$1"; fi
}
run_base "$XDG_RUNTIME_DIR"
[ "$XDG_RUNTIME_DIR" = "/run/user/$uid" ] || run_base "/run/user/$uid"
[ -d /run/systemd/system ] && [ ! -e "/var/lib/systemd/linger/$user" ] && say logout_removes "/run/user/$uid"
own=/tmp/rbee-$uid
tmp_problem=
if [ -L "$own" ]; then tmp_problem="$own is a symbolic link"
elif [ -e "$own" ] && [ ! -O "$own" ]; then tmp_problem="$own belongs to somebody else"
elif [ -e "$own" ] && [ ! -d "$own" ]; then tmp_problem="$own is no folder"
elif [ -n "$(find "$own" -prune \( -perm -0020 -o -perm -0002 \) 2>/dev/null)" ]; then
  tmp_problem="$own can be changed by others"
fi
say tmp_problem "$tmp_problem"
for socket in "$XDG_RUNTIME_DIR"/rbee/*/hive.sock "/run/user/$uid"/rbee/*/hive.sock "$own"/*/hive.sock; do
  [ -S "$socket" ] && say hive_socket "$socket"
done

# --- what logind does when the last session ends
if [ -d /run/systemd/system ]; then
  logind=$(soon loginctl show-user --property=KillUserProcesses --property=KillExcludeUsers)
  [ -n "$logind" ] || logind=$(
    cat /etc/systemd/logind.conf /usr/lib/systemd/logind.conf.d/*.conf /run/systemd/logind.conf.d/*.conf \
      /etc/systemd/logind.conf.d/*.conf 2>/dev/null | sed 's/^ *//; s/ *= */=/')
  kills=$(printf '%s\n' "$logind" | sed -n 's/^KillUserProcesses=//p' | tail -n 1)
  spared=$(printf '%s\n' "$logind" | sed -n 's/^KillExcludeUsers=//p' | tail -n 1)
  case " ${spared:-root} " in *" $user "*) kills=no ;; esac
  say kill_user_processes "$kills"
  # A scope of the user's own manager is out of logind's reach; the manager stays where the user lingers.
  case $kills in
    [yYtT1]* | [oO][nN])
      [ -e "/var/lib/systemd/linger/$user" ] && soon systemd-run --user --scope --quiet true </dev/null &&
        say user_scope yes
      ;;
  esac
fi

# --- tools
for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
  path=$(command -v "$name" 2>/dev/null) || continue
  found=$(soon "$path" -I -c 'import importlib.util as u, sys
print("%d.%d.%d" % sys.version_info[:3], int(u.find_spec("ensurepip") is not None), sys.executable)' </dev/null) || continue
  say python "$(printf '%s\n' "$found" | tail -n 1)"
done
compiler=
for name in c++ g++ clang++; do
  compiler=$(command -v "$name" 2>/dev/null) && break
done
say compiler "$compiler"
if have nvidia-smi; then
  soon nvidia-smi --query-gpu=name,memory.total,memory.free,driver_version --format=csv,noheader,nounits |
    while read -r line; do say nvidia "$line"; done
fi
[ -e /dev/kfd ] && say rocm "$(cat /sys/class/kfd/kfd/topology/nodes/*/name 2>/dev/null | tail -n 1)"
say end yes
