# What NVIDIA's driver says, as lines `key=value`. Follows probe.sh, whose functions and `a_python` it uses.
# A driver that does not know compute_cap (before 510) refuses the whole question. The library tells its CUDA in no
# time, while each nvidia-smi takes seconds where nothing keeps the driver awake.
# A call that the driver never ends cannot be killed, and `timeout` waits for it: what asks is left behind, with nothing
# of this script's open, and what it has said until then counts. nvidia_limit_s: for all of it.
PATH=$PATH:/usr/lib/wsl/lib
query=name,memory.total,memory.free,driver_version
nvidia_says() {
  nvidia=
  if have nvidia-smi; then
    nvidia=$(soon nvidia-smi "--query-gpu=$query,compute_cap" --format=csv,noheader,nounits)
    case $? in
      0) ;;
      124 | 137 | 143) say nvidia_hangs yes ;; # whoever asks again waits again
      *) nvidia=$(soon nvidia-smi "--query-gpu=$query" --format=csv,noheader,nounits) ;;
    esac
    printf '%s\n' "$nvidia" | head -n 64 | while read -r line; do [ -z "$line" ] || say nvidia "$line"; done
    # A toolkit may be there without cuBLAS, which llama.cpp loads as well.
    libraries=$(soon ldconfig -p)
    printf '%s\n' "$libraries" | sed -n 's/^[[:space:]]*libcudart\.so\.\([0-9][0-9]*\)[. ].*/\1/p' |
      while read -r line; do
        case $libraries in *"libcublas.so.$line "* | *"libcublas.so.$line."*) say cudart "$line" ;; esac
      done
  fi
  cuda=
  if [ "$system" = Linux ] && [ -n "$a_python" ]; then
    found=$(soon "$a_python" -I -c 'import ctypes as c, sys
try:
    lib = c.CDLL("libcuda.so.1")
except OSError:
    lib = c.CDLL("/usr/lib/wsl/lib/libcuda.so.1")
n, major, minor, size, name = c.c_int(), c.c_int(), c.c_int(), c.c_size_t(), c.create_string_buffer(100)
if lib.cuDriverGetVersion(c.byref(n)) == 0:
    print("cuda=%d.%d" % (n.value // 1000, n.value % 1000 // 10), flush=True)
if sys.argv[1:] == ["gpus"] and lib.cuInit(0) == 0 and lib.cuDeviceGetCount(c.byref(n)) == 0:
    for i in range(n.value):
        device = c.c_int()
        answers = [
            lib.cuDeviceGet(c.byref(device), i),
            lib.cuDeviceGetName(name, 100, device),
            lib.cuDeviceTotalMem_v2(c.byref(size), device),
            lib.cuDeviceGetAttribute(c.byref(major), 75, device),
            lib.cuDeviceGetAttribute(c.byref(minor), 76, device),
        ]
        if not any(answers):
            text = name.value.decode(errors="replace")
            print("nvidia=%s, %d, 0, , %d.%d" % (text, size.value >> 20, major.value, minor.value))
' $([ -n "$nvidia" ] || echo gpus) </dev/null)
    printf '%s\n' "$found" | while IFS= read -r line; do
      case $line in cuda=* | nvidia=*) say "${line%%=*}" "${line#*=}" ;; esac
    done
    case $found in cuda=*) cuda=known ;; esac
  fi
  if [ -z "$cuda" ] && [ -n "$nvidia" ]; then
    say cuda "$(soon nvidia-smi | sed -n 's/.*CUDA [A-Za-z ]*Version: *\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' | head -n 1)"
  fi
}
(
  exec 2>/dev/null </dev/null # a redirection of the call would be kept open besides, to be undone after it
  nvidia_says
) &
asks=$!
(
  trap 'kill "$pause"; exit' TERM
  sleep "$nvidia_limit_s" & pause=$!
  wait "$pause"
  kill -9 "$asks"
) >/dev/null 2>&1 </dev/null &
limit=$!
wait "$asks" 2>/dev/null
case $? in 137 | 9) say nvidia_hangs yes ;; esac
kill "$limit" 2>/dev/null
