#!/usr/bin/env bash
# Two rounds of every row of Tables 2 and 3, on real Fashion-MNIST at the smaller scale: does all of it run here? About ten minutes on two cores.
# bash multirun_scripts/two_rounds.sh [setting=value ...]
set -- scale=mini rounds=2 seed=0 tracker=none hydra.sweep.dir=outputs/two_rounds "$@"
source "$(dirname "$0")/common.sh"
sweeps two_rounds table2_resnet table2_resnet_moon table2_vit table2_vit_moon \
  table3_heterofl table3_inclusivefl table3_fedrolex table3_scalefl table3_allsmall table3_alllarge -- "$@"
