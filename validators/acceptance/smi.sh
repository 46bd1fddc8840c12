# Runs in a probe pod that was given all GPUs of its node. Prints nvidia-smi's own text, then its XML; leaves
# the verdict as JSON in the termination message, which arrives even where logs cannot be read.
out="${GPUREADY_TERMINATION_LOG:-/dev/termination-log}"
nvidia-smi 2>&1
code=$?
if [ "$code" -ne 0 ]; then
    printf '{"exit":%d,"gpus":0}' "$code" >"$out"
    exit "$code"
fi
gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader,nounits | grep -c '[0-9]')
product=$(nvidia-smi --query-gpu=name --format=csv,noheader,nounits | sort -u | paste -sd, - | tr -d '"\\')
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader,nounits | sort -u | paste -sd, - | tr -d '"\\')
printf '{"exit":0,"gpus":%d,"product":"%s","driver":"%s"}' "$gpus" "$product" "$driver" >"$out"
nvidia-smi -q -x
