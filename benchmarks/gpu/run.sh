#!/bin/sh
# One step on a GPU machine, each under ten minutes: run.sh build | model | node | tests | speed. README.md tells how.
# Options go to the step: --backend cpu, --shape small. GPU_WORK: where everything is kept; /tmp/rbee-gpu.
set -eu
umask 022 # the node's user reads the models
root=$(cd "$(dirname "$0")/../.." && pwd)
pack=$root/.gpu-pack
work=${GPU_WORK:-/tmp/rbee-gpu}
python=$work/venv/bin/python
for folder in /usr/local/cuda/bin /opt/cuda/bin; do # where CUDA's installers put it, and not every image has it in PATH
    [ ! -x "$folder/nvcc" ] || PATH=$PATH:$folder
done
export PATH
if [ ! -e "$work/venv/ready" ]; then
    mkdir -p "$work"
    "${PYTHON:-python3}" -m venv --without-pip --clear "$work/venv"
    pip=$(echo "$pack"/wheels/pip-*.whl)/pip
    "$python" "$pip" install -q --no-index --find-links "$pack/wheels" --require-hashes --no-deps --no-compile \
        -r "$pack/venv.txt"
    "$python" -m pip install -q --no-index --no-deps --no-build-isolation --editable "$root"
    touch "$work/venv/ready"
fi
cd "$root"
exec "$python" -m benchmarks.gpu --pack "$pack" --work "$work" "$@" </dev/null
