#!/usr/bin/env bash
# Tables 3 and 6: systems for clients of different sizes, with and without InCo.
# bash multirun_scripts/table3.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table3 table3_heterofl table3_inclusivefl table3_fedrolex table3_scalefl table3_allsmall table3_alllarge -- "$@"
