# What rbee left on a node: its processes and its files. POSIX sh, for nodes whose Python may be gone; reads home,
# run_name (the last part of the folder for sockets), proc (/proc), and defines functions that other lines then call.
LC_ALL=C; export LC_ALL
newline='
'
uid=$(id -u)
real=$(cd "$home" 2>/dev/null && pwd -P) || real=$home
home_of_user=${HOME:-$(getent passwd "$uid" 2>/dev/null | cut -d: -f6)}
have_proc() { [ -r "$proc/self/stat" ]; }

is_hex16() { case $1 in *[!0-9a-f]*) return 1 ;; ????????????????) return 0 ;; esac; return 1; }

# Whether a command line is rbee's: a program of a runtime that we made, or a Python that runs a payload of ours. What
# merely names one of our files is not. $1: one word a line, or all on one; $2: what is between its words.
is_ours() {
  for place in "$home" "$real"; do
    case $1 in
      "$place"/runtimes/*)
        name=${1#"$place"/runtimes/}
        is_hex16 "${name%%/*}" && return 0
        case $name in python/*|uv-[0-9]*|.staging-*|.removed-*) return 0 ;; esac ;;
    esac
    case $1 in
      *"$2-I$2$place/payloads/"????????????????.zip"$2"*)
        name=${1#*"$2-I$2$place/payloads/"}
        is_hex16 "${name%%.zip"$2"*}" || continue
        program=${1%%"$2-I$2$place/payloads/"*}
        case $program in *"$newline"*) continue ;; esac
        case ${program##*/} in *[!A-Za-z0-9.]*) ;; [Pp]ython*|pypy*) return 0 ;; esac ;;
    esac
  done
  return 1
}

# Whether a process runs in a container of this machine, where the same path is another file, and has another owner.
is_contained() {
  while read -r key _ inner; do
    if [ "$key" = NSpid: ]; then [ -n "$inner" ]; return; fi
  done <"$proc/$1/status"
  return 1
} 2>/dev/null

# `PID START GROUP COMMAND` of each process of this user and this home. START tells it from a later one with its pid.
processes() {
  if have_proc; then
    for folder in "$proc"/[0-9]*; do
      [ -O "$folder" ] || continue
      words=; { IFS= read -r words <"$folder/cmdline"; } 2>/dev/null
      case $words in *"$home/"*|*"$real/"*) ;; *) continue ;; esac  # no other program is started for each process
      words=$(tr '\0' '\n' <"$folder/cmdline") 2>/dev/null || continue
      is_ours "$words" "$newline" || continue
      pid=${folder##*/}
      ! is_contained "$pid" || continue
      born=$(birth "$pid")
      [ -z "$born" ] || printf '%s %s %s\n' "$pid" "$born" "$(command_of "$words")"
    done
  else
    ps -ww -U "$uid" -o pid= -o args= | while read -r pid words; do
      is_ours "$words" ' ' || continue
      born=$(birth "$pid")
      [ -z "$born" ] || printf '%s %s %s\n' "$pid" "$born" "$(command_of "$words")"
    done
  fi
}

# `START GROUP` of a process; nothing for one that is gone.
birth() {
  if have_proc; then
    fields=$(tr '\n' ' ' <"$proc/$1/stat") 2>/dev/null || return 0
    set -- ${fields##*)}
    shift 2; group=$1; shift 17
    printf '%s %s' "$1" "$group"
  else
    ps -o lstart= -o pgid= -p "$1" | awk '{ print $1 $2 $3 $4 $5, $6 }'
  fi
}

# The word behind the payload: hive, worker, …; the program's name for others.
command_of() {
  case $1 in
    *"/payloads/"????????????????.zip*)
      word=${1##*"/payloads/"????????????????.zip}
      printf %s "$word" | tr '\n' ' ' | { read -r word _; echo "${word:-python}"; } ;;
    *) word=${1%%"$newline"*}; word=${word##*/}; echo "${word%% *}" ;;
  esac
}

# Those of `processes` whose command is one of the arguments; all of them without arguments.
running() {
  processes | while read -r pid start group command; do
    case " $* " in "  "|*" $command "*) echo "$pid $start $group $command" ;; esac
  done
}

# Ask processes to end, then by force; $1: seconds for each, then commands, none for all. Looks each process up again
# right before its signal.
end_all() {
  patience=$1; shift
  for signal in TERM KILL; do
    running "$@" | while read -r pid start group _; do
      [ "$(birth "$pid")" = "$start $group" ] || continue
      if [ "$group" = "$pid" ]; then whom=-$pid; else whom=$pid; fi
      # busybox takes no `-s SIGNAL --`. One that is stopped gets the signal only when it goes on.
      { kill "-$signal" "$whom"; kill -CONT "$whom"; } 2>/dev/null
    done
    tries=$((patience * 5))
    while [ -n "$(running "$@")" ] && [ "$tries" -gt 0 ]; do
      tries=$((tries - 1))
      sleep 0.2 2>/dev/null || sleep 1
    done
  done
}

# One record, ended by a zero byte: `SECTION TYPE KILOBYTES PATH`.
record() {
  if [ -L "$3" ]; then type=link; elif [ -d "$3" ]; then type=folder; else type=file; fi
  printf '%s %s %s %s\0' "$1" "$type" "$2" "$3"
}
kilobytes() { du -sk "$1" 2>/dev/null | { read -r size _; echo "${size:-0}"; }; }

# What lies in a folder, hidden things included. $1: section, $2: folder, $3: "sizes" to measure each entry.
entries() {
  for entry in "$2"/* "$2"/.[!.]* "$2"/..?*; do
    [ -e "$entry" ] || [ -L "$entry" ] || continue
    size=0
    [ "$3" != sizes ] || size=$(kilobytes "$entry")
    record "$1" "$size" "$entry"
  done
}

run_dirs() {
  for base in "${XDG_RUNTIME_DIR:-/nowhere}/rbee" "/run/user/$uid/rbee" "/tmp/rbee-$uid"; do
    folder=$base/$run_name
    # First what is above: who owns that could exchange what is below between two looks.
    [ ! -L "$base" ] && [ -O "$base" ] && [ ! -L "$folder" ] && [ -d "$folder" ] && [ -O "$folder" ] || continue
    echo "$folder"
  done
}

look() {
  processes | while read -r pid start group command; do printf 'process %s %s %s\0' "$pid" "$start" "$command"; done
  entries home "$home"
  for part in payloads runtimes models log; do
    [ -d "$home/$part" ] || continue
    record total "$(kilobytes "$home/$part/")" "$home/$part"
    if [ "$part" = models ]; then entries models "$home/models" sizes; else entries "$part" "$home/$part"; fi
  done
  run_dirs | while IFS= read -r folder; do entries run "$folder"; done
  hosts | while IFS= read -r host; do record host 0 "$host"; done
  record end 0 "$home"
}

# Other machines that the audit log says a hive ran on from this very home.
hosts() {
  sed -n 's/.*"host": "\([^"]*\)".*/\1/p' "$home"/log/audit*.log | sort -u | grep -vxF -e "$(uname -n)"
} 2>/dev/null

# Remove empty folders that rbee made: those of the home, the home, and what was made on the way to it. $1: the name of
# the note of those, $2: "keep" where models stay, and the note with them.
fold() {
  for part in payloads runtimes models log; do
    [ -L "$home/$part" ] || rmdir "$home/$part"
  done
  if [ -e "$home/$1" ]; then
    made=$(sed -n '/^\//p' "$home/$1")
  else
    made=$home
    [ "$home" != "$home_of_user/.rbee/node" ] || made=$home$newline${home%/*}
  fi
  if [ "$2" != keep ]; then
    rm -f "$home/$1"
    printf '%s\n' "$made" | while IFS= read -r folder; do rmdir "$folder"; done
  fi
  run_dirs | while IFS= read -r folder; do rmdir "$folder" && rmdir "${folder%/*}"; done
} 2>/dev/null
