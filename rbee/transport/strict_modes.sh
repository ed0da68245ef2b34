# Whether somebody else can replace a folder, or what stands in it: `unsafe_because PATH` says how. POSIX sh; sent before other scripts.
LC_ALL=C; export LC_ALL
newline='
'
have() { command -v "$1" >/dev/null 2>&1; }
if have timeout && timeout -k 1 5 true 2>/dev/null; then
  soon() { timeout -k 1 5 "$@" 2>/dev/null; }
elif have timeout && timeout 5 true 2>/dev/null; then
  soon() { timeout 5 "$@" 2>/dev/null; }
else
  soon() { "$@" 2>/dev/null; }
fi
uid=$(id -u)
user=$(id -un 2>/dev/null)
# Whether the group $1 is this user's alone, as many systems give each user one: it has the user's name, is nobody
# else's and has no further members.
is_private() {
  [ -n "$user" ] && [ "$1" = "$(id -g)" ] && [ "$(id -gn 2>/dev/null)" = "$user" ] || return 1
  members=$(soon getent group "$1") || members=$(grep "^$user:" /etc/group 2>/dev/null)
  case ${members##*:} in ''|"$user") ;; *) return 1 ;; esac
  [ -z "$(awk -F: -v u="$user" -v g="$1" '$4 == g && $1 != u' /etc/passwd 2>/dev/null)" ]
}
# Every folder and link that leads to $1, as far as they exist, one a line: / first, links followed one by one.
leads_to() {
  left=${1#/}; at=; links=0
  echo /
  while [ -n "$left" ]; do
    part=${left%%/*}
    case $left in */*) left=${left#*/} ;; *) left= ;; esac
    case $part in ''|.) continue ;; ..) at=${at%/*}; continue ;; esac
    if [ -L "$at/$part" ]; then
      printf '%s\n' "$at/$part"
      links=$((links + 1)); [ "$links" -le 40 ] || return 0
      link=$(readlink "$at/$part")
      left=$link/$left
      case $link in /*) at= ;; esac
    elif [ -e "$at/$part" ]; then
      at=$at/$part
      printf '%s\n' "$at"
    else return 0
    fi
  done
}
# What lets somebody else replace $1 or what stands in it; nothing where only this user and root can. OpenSSH's rule
# (StrictModes), for links too; in a folder on the way that is as /tmp is (sticky), others cannot touch what is ours.
unsafe_because() {
  all=$(leads_to "$1")
  last=; [ ! -e "$1" ] || last=${all##*"$newline"}
  set -f; IFS=$newline
  # shellcheck disable=SC2086
  listed=$(TIME_STYLE=locale QUOTING_STYLE=literal ls -ldn $all 2>/dev/null) || listed="? ? ? ? ? ? ? ? $1"
  unset IFS; set +f
  printf '%s\n' "$listed" | while read -r mode _ owner group _ _ _ _ name; do
    name=${name%% -> *}
    case $owner in
      0|"$uid") ;;
      \?) echo "$name cannot be looked at"; break ;;
      *) echo "$name belongs to somebody else"; break ;;
    esac
    case $mode in
      l*) continue ;;
      ?????????[tT]*) [ "$name" = "$last" ] || continue ;;
    esac
    case $mode in
      ????????w*) ;;
      ?????w????+*) ;;
      ?????w*) if is_private "$group"; then continue; fi ;;
      *) continue ;;
    esac
    echo "$name can be changed by others: chmod go-w $name"; break
  done
}
