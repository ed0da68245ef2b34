# What a node is like, as lines `key=value`; a key may come several times. POSIX sh; reads home_wanted; follows strict_modes.sh.
# Nothing here may write or execute a file of its own, hang, or fail as a whole because one question has no answer.
say() {
  case $2 in
    *"$newline"*) printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')" ;;
    *) printf '%s=%s\n' "$1" "$2" ;;
  esac
}
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
[ ! -r /proc/cpuinfo ] || say cpu "$(sed -n '/^\(flags\|Features\)[[:space:]]*:/{s/^[^:]*: *//p;q;}' /proc/cpuinfo)"
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
# The options of the file system that the parent lies on. In /proc/mounts a blank is written as \040.
problem=$(unsafe_because "$home")
if [ -z "$problem" ] && [ -d "$home" ]; then
  for folder in "$home" "$home"/payloads "$home"/runtimes "$home"/models "$home"/log; do
    [ ! -e "$folder" ] || [ -O "$folder" ] || problem="$folder belongs to somebody else"
    [ ! -L "$folder" ] || [ -n "$problem" ] || problem=$(unsafe_because "$folder")
  done
fi
say home_problem "$problem"
real=$(cd "$parent" 2>/dev/null && pwd -P) || real=$parent
if [ -r /proc/mounts ]; then
  say home_mount "$(awk -v d="${real%/}/" '
    { m = $2; gsub(/\\040/, " ", m); gsub(/\\011/, "\t", m); gsub(/\\134/, "\\", m); if (m != "/") m = m "/"
      if (index(d, m) == 1 && length(m) >= n) { n = length(m); o = $4 } }
    END { print o }' /proc/mounts)"
else
  point=$(soon df -P "$real" | sed -n '2s/.* [0-9]*% *//p')
  say home_mount "$(soon mount | awk -v m=" on $point (" '
    (i = index($0, m)) { o = substr($0, i + length(m)); sub(/\).*/, "", o); gsub(/ /, "", o) } END { print o }')"
fi
for file in "$home"/payloads/*.zip; do [ -f "$file" ] && say payload "${file##*/}"; done
for folder in "$home"/runtimes/*/; do
  folder=${folder%/}
  [ -x "$folder/bin/python" ] && say runtime "${folder##*/}"
  for library in "$folder"/libraries/*/; do
    library=${library%/}
    [ -d "$library" ] && say library "${library##*/}"
  done
done
for file in "$home"/runtimes/uv-*; do [ -x "$file" ] && say uv "${file##*/}"; done

# --- where its sockets live
run_base() {
  [ -n "$1" ] && [ -d "$1" ] || return 0
  if [ -O "$1" ] && [ -w "$1" ] && [ -z "$(unsafe_because "$1")" ]; then say run_base "$1"; fi
}
run_base "$XDG_RUNTIME_DIR"
[ "$XDG_RUNTIME_DIR" = "/run/user/$uid" ] || run_base "/run/user/$uid"
[ -d /run/systemd/system ] && [ ! -e "/var/lib/systemd/linger/$user" ] && say logout_removes "/run/user/$uid"
own=/tmp/rbee-$uid
tmp_problem=
if [ -L "$own" ]; then tmp_problem="$own is a symbolic link"
elif [ -e "$own" ] && [ ! -O "$own" ]; then tmp_problem="$own belongs to somebody else"
elif [ -e "$own" ] && [ ! -d "$own" ]; then tmp_problem="$own is no folder"
else tmp_problem=$(unsafe_because "$own")
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
a_python=
for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
  path=$(command -v "$name" 2>/dev/null) || continue
  # The number before the version: which Landlock the kernel has, -1 for none, -2 where this Python cannot ask.
  found=$(soon "$path" -I -c 'import importlib.util as u, sys
try:
    import ctypes as c
    abi = c.CDLL(None).syscall(444, None, c.c_size_t(0), 1) if sys.platform == "linux" else -2
except Exception:
    abi = -2
print(abi, "%d.%d.%d" % sys.version_info[:3], int(u.find_spec("ensurepip") is not None), sys.executable)' </dev/null) ||
    continue
  found=$(printf '%s\n' "$found" | tail -n 1)
  say landlock "${found%% *}"
  say python "${found#* }"
  [ -n "$a_python" ] || a_python=$path
done
compiler=
for name in c++ g++ clang++; do
  compiler=$(command -v "$name" 2>/dev/null) && break
done
say compiler "$compiler"
[ -e /dev/kfd ] && say rocm "$(cat /sys/class/kfd/kfd/topology/nodes/*/name 2>/dev/null | tail -n 1)"
say end yes
