# What the scripts beside this one share. They are given the words of run.py: scale=mini or scale=paper, and whatever else is to hold for all runs.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

for word in "$@"; do
  case $word in
    -*) echo "$word: give settings, as scale=mini or seed=0; Hydra's own options belong to run.py" >&2; exit 2 ;;
  esac
done
case " $* " in
  *" scale=paper "* | *" scale=mini "*) ;;
  *) echo "usage: bash $0 scale=mini|paper [setting=value ...]    mini: two cores, under an hour; paper: as published" >&2; exit 2 ;;
esac

# sweeps NAME EXPERIMENT... -- WORDS...: run each experiment's sweep, then compare all their runs in outputs/NAME/. Runs that are finished are not
# repeated. A run that fails stops no other; the exit status is the largest of all.
sweeps() {
  local name=$1 status=0 code experiments=() folders=() found; shift
  while [ "$1" != -- ]; do experiments+=("$1"); shift; done
  shift
  for experiment in "${experiments[@]}"; do
    echo "=== $experiment $*"
    python run.py -m "experiment=$experiment" "$@"
    code=$?
    if [ "$code" -gt "$status" ]; then status=$code; fi
    if [ "$code" -eq 2 ] || [ "$code" -eq 75 ] || [ "$code" -eq 130 ]; then exit "$code"; fi  # a wrong word, or asked to stop
  done
  for experiment in "${experiments[@]}"; do
    found=$(python -m inco.plan --folders "experiment=$experiment" "$@") || exit $?
    while IFS= read -r folder; do if [ -e "$folder" ]; then folders+=("$folder"); fi; done <<< "$found"
  done
  if [ ${#folders[@]} -gt 1 ]; then  # one run has its report.html
    python -m inco.report "${folders[@]}" --out "outputs/$name" || exit $?
  fi
  return "$status"
}
