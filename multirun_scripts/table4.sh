#!/usr/bin/env bash
# Table 4 and Figure 9a to c: InCo's beta and theta.
# bash multirun_scripts/table4.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table4 figure9 -- "$@"
