# What a node has for Vulkan and ROCm: lines `key=value` with fields between bars. Follows probe.sh, whose functions it
# uses. graphics_root: where /sys and /dev are, empty but in tests.
g=$graphics_root
for entry in "$g"/sys/class/drm/renderD*; do
  [ -e "$entry" ] || continue
  name=${entry##*/}
  node=$g/dev/dri/$name
  device=$entry/device
  driver=$(readlink "$device/driver" 2>/dev/null)
  access=absent
  [ ! -e "$node" ] || access=no
  [ ! -r "$node" ] || [ ! -w "$node" ] || access=yes
  fields=
  for field in vendor device mem_info_vram_total mem_info_vram_used product_name; do
    value=
    [ ! -r "$device/$field" ] || read -r value <"$device/$field"
    fields="$fields|$value"
  done
  say render "$name|${driver##*/}|$access|$(soon stat -c %G "$node")$fields"
done
if [ -e "$g/dev/kfd" ]; then
  access=no
  [ ! -r "$g/dev/kfd" ] || [ ! -w "$g/dev/kfd" ] || access=yes
  say kfd "$access|$(soon stat -c %G "$g/dev/kfd")"
fi
for file in "$g"/sys/class/kfd/kfd/topology/nodes/*/properties; do
  [ -r "$file" ] || continue
  say kfd_node "$(awk '$1 == "drm_render_minor" { m = $2 } $1 == "gfx_target_version" { v = $2 } END { print m "|" v }' "$file")"
done
libraries=$(soon ldconfig -p)
for name in libvulkan libamdhip64; do
  for file in $(printf '%s\n' "$libraries" | sed -n "s/^[[:space:]]*\($name\.so\.[0-9]*\)[. ].*/\1/p" | sort -u); do
    say gpu_library "$file"
  done
done
for file in "$g"/opt/rocm/lib/libamdhip64.so.[0-9]; do [ -e "$file" ] && say gpu_library "${file##*/}"; done
for file in "$g"/usr/share/vulkan/icd.d/*.json "$g"/usr/local/share/vulkan/icd.d/*.json "$g"/etc/vulkan/icd.d/*.json \
  "$HOME"/.local/share/vulkan/icd.d/*.json; do
  [ -r "$file" ] || continue
  library=$(sed -n 's/.*"library_path"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p' "$file" 2>/dev/null | head -n 1)
  there=unknown
  case $library in
    /*) if [ -e "$g$library" ]; then there=yes; else there=no; fi ;;
    */*) ;;
    ?*)
      case $libraries in
        *"$library "*) there=yes ;;
        ?*) there=no ;;
      esac
      ;;
  esac
  say icd "${file##*/}|$there"
done
