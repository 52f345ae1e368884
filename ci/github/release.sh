#!/usr/bin/env bash
# The release step of the GitHub action: runs `dagger call release` with what action.yml put into the environment, writes
# the report, the job summary and the outputs, and ends with greenlight's exit code.
set -euo pipefail

module=${INPUT_MODULE:-$ACTION_PATH/../..}
report=${INPUT_REPORT:-greenlight-report}

# Secrets are named, not passed: Dagger reads the variables itself.
args=(
  --source "${INPUT_SOURCE:-.}"
  --config "${INPUT_CONFIG:-greenlight.yaml}"
  --version "$INPUT_VERSION"
  --platform "${INPUT_PLATFORM:-linux/amd64}"
  --kubeconfig env:GREENLIGHT_KUBECONFIG
  --signing-key env:GREENLIGHT_SIGNING_KEY
)
if [[ -n ${GREENLIGHT_SIGNING_PASSWORD:-} ]]; then args+=(--signing-password env:GREENLIGHT_SIGNING_PASSWORD); fi
if [[ -n ${GREENLIGHT_REGISTRY_PASSWORD:-} ]]; then
  args+=(--registry-username "${INPUT_REGISTRY_USERNAME:-}" --registry-password env:GREENLIGHT_REGISTRY_PASSWORD)
fi
if [[ -n ${GITHUB_RUN_ID:-} ]]; then
  args+=(--holder "$GITHUB_ACTOR, $GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID")
fi
if [[ -n ${INPUT_VERIFY_KEY:-} ]]; then args+=(--verify-key "$INPUT_VERIFY_KEY"); fi
if [[ -n ${INPUT_BASE:-} ]]; then args+=(--base "$INPUT_BASE"); fi
if [[ -n ${INPUT_KUBE_API:-} ]]; then args+=(--kube-api "$INPUT_KUBE_API"); fi
if [[ -n ${INPUT_REGISTRY:-} ]]; then args+=(--registry "$INPUT_REGISTRY"); fi
if [[ -n ${INPUT_TRIVY_DB:-} ]]; then args+=(--trivy-db "$INPUT_TRIVY_DB"); fi
if [[ ${INPUT_TRIVY_INSECURE:-false} == true ]]; then args+=(--trivy-insecure); fi
while IFS= read -r line; do
  if [[ -n $line ]]; then args+=(--build-args "$line"); fi
done <<<"${INPUT_BUILD_ARGS:-}"

rm -rf -- "$report"
# A release that was refused still has a report, so the verdict is read from that and not from this command.
dagger call --progress plain --mod "$module" release "${args[@]}" --allow-failure directory export --path "$report" >/dev/null

# Each line is GREENLIGHT_NAME=value, with the value up to the end of the line.
field() { sed -n "s/^GREENLIGHT_$1=//p" "$report/release.env"; }
code=$(field EXIT_CODE)

if [[ -n ${GITHUB_OUTPUT:-} ]]; then
  {
    for name in STATUS REASON IMAGE DIGEST; do printf '%s=%s\n' "${name,,}" "$(field "$name")"; done
    printf 'exit-code=%s\n' "$code"
    if [[ -f $report/scan.sarif ]]; then printf 'sarif=true\n'; fi
  } >>"$GITHUB_OUTPUT"
fi
if [[ -n ${GITHUB_STEP_SUMMARY:-} ]]; then cat "$report/report.md" >>"$GITHUB_STEP_SUMMARY"; fi
if [[ $code != 0 ]]; then
  # In a workflow command % and line ends are written as escapes.
  reason=$(field REASON)
  printf '::error title=greenlight::%s\n' "${reason//%/%25}"
fi
exit "$code"
