# Shared by the checks of whole shops: output, images, days in the shop, and requests to the shop's address.
#
# The sourcing script sets `work` (a directory), `shop` and `internal` (the two listeners), `database` (a URL) and `brokers`.
# shellcheck shell=bash

services=(cart-commands inventory-translator cart-projections publisher)
# shellcheck disable=SC2034 # used by the sourcing scripts
images=("${services[@]}" console migrate cartctl)
commit=$(git describe --always --dirty 2> /dev/null || echo unknown)
demo=''

step() { printf '\n== %s (at %d s)\n' "$*" "$SECONDS"; }
say() { printf '   %s\n' "$*"; }
fail() { printf '\n** %s\n' "$*" >&2; exit 1; }

# Shows a command's output only if it fails.
quietly() { "$@" > "$work/output" 2>&1 || { tail --lines=40 "$work/output" >&2; fail "failed: $*"; }; }

# Waits for a condition. The limit is for a machine that is busy with other work; only a broken shop reaches it.
patience=600
until_true() { # what, command...
    local what=$1 began=$SECONDS said=$SECONDS
    shift
    until "$@"; do
        ((SECONDS < began + patience)) || fail "waited $patience s in vain for $what"
        ((SECONDS < said + 30)) || { said=$SECONDS; say "still waiting for $what, for $((SECONDS - began)) s"; }
        sleep 0.5
    done
}

build_demo() {
    step 'building cargo dev'
    quietly cargo build --package dev
    dev=$(cargo metadata --no-deps --format-version 1 | jq --raw-output .target_directory)/debug/dev
}

# Builds the images under a tag, with a commit.
build_images() { # tag, commit
    CARTLOG_TAG=$1 CARTLOG_COMMIT=$2 quietly docker compose --profile operator build
}
build_both() {
    step "building the images, at commit $commit"
    build_images check "$commit"
    step 'building the images again with another commit: no dependency is rebuilt'
    build_images check-next "$commit-next"
    if grep --extended-regexp 'Compiling (tokio|serde|librdkafka|rdkafka-sys|sqlx-core) ' "$work/output"; then
        fail 'dependencies were rebuilt for another commit'
    fi
}

# Starts a day in the shop in the background. `lived` waits for its outcome. A day must be exact. It may have answers that ask to send the
# request again, such as 503 `unavailable` on a busy machine: a client repeats those. Lost answers fail it, unless it has --outages.
day=() day_began=0 none_missing=''
live() { # flags...
    day=("$@") day_began=$SECONDS
    COMMANDS_URL=http://$shop PROJECTIONS_URL=http://$shop INTERNAL_URL=http://$internal KAFKA_BOOTSTRAP_SERVERS=$brokers DATABASE_URL=$database \
        "$dev" demo --patience "$patience" "$@" > "$work/demo" 2>&1 &
    demo=$!
    until_true 'the shop to open' opened
}
opened() { grep --quiet 'the shop opens' "$work/demo" || ! kill -0 "$demo" 2> /dev/null; }
lived() {
    local pid=$demo
    demo=''
    wait "$pid" || { cat "$work/demo" >&2; fail 'the day in the shop failed'; }
    # The proxy answers not_ready if a service has no process.
    if [[ -n $none_missing ]] && grep --quiet ' not_ready ' "$work/demo"; then cat "$work/demo" >&2; fail 'a request found no process of its service'; fi
    sed -n '/Requests that were sent again/,/^$/p; /Compared with the log/,$p' "$work/demo" | sed 's/^/ /'
}
# Makes sure that shoppers will come for some time yet. On a slow machine a day may end early; then the next one starts.
keep_living() { # seconds that the day lasts
    ((SECONDS < day_began + $1 / 2)) && kill -0 "$demo" 2> /dev/null && return
    lived
    live "${day[@]}"
}
stop_living() { [[ -z $demo ]] || kill "$demo" 2> /dev/null; }

expect() { # status, listener, path, curl's arguments...
    local status
    status=$(curl --silent --show-error --output "$work/body" --write-out '%{http_code}' "http://$2$3" "${@:4}")
    [[ $status == "$1" ]] || fail "$2$3 is answered $status instead of $1: $(< "$work/body")"
    say "$2$3: $status $(head --bytes=100 "$work/body" | tr '\n' ' ')"
}
# Asks every route of every service through its listener, and checks that the other listener does not route it.
ask_both_listeners() {
    local id=01980000-0000-7000-8000-00000000000 position path
    step 'two listeners'
    expect 200 "$internal" "/changeinventory/${id}c" --json '{"product_id":"'${id}c'","inventory":5}'
    expect 200 "$internal" "/changeprice/${id}c" --json '{"product_id":"'${id}c'","old_price":"9.00","new_price":"9.99"}'
    expect 200 "$shop" "/additem/${id}a" --json '{"cart_id":"'${id}a'","item_id":"'${id}b'","product_id":"'${id}c'","description":"A tea pot","image":"","price":"9.99"}'
    position=$(jq '.[1]' "$work/body")
    expect 200 "$shop" "/${id}a/cartitems"
    expect 200 "$shop" "/${id}a/cartitemsfromdb?min_position=$position"
    expect 200 "$internal" "/cartswithproducts/${id}c?min_position=$position"
    expect 200 "$internal" "/inventories/${id}c?min_position=$position"
    expect 200 "$internal" "/changedprices/${id}c?min_position=$position"
    expect 200 "$shop" "/removeitem/${id}a" --json '{"cart_id":"'${id}a'","item_id":"'${id}b'"}'
    expect 409 "$shop" "/submitcart/${id}a" --json '{"cart_id":"'${id}a'"}'
    expect 200 "$shop" "/${id}a/submittedcart"
    for service in "${services[@]}"; do expect 200 "$internal" "/$service/openapi.json"; done
    expect 200 "$internal" /console
    expect 404 "$public" /console
    for service in inventory-translator cart-projections publisher; do expect 200 "$internal" "/$service/lag"; done
    for path in "/changeinventory/${id}c" "/changeprice/${id}c" "/cartswithproducts/${id}c" "/inventories/${id}c" "/changedprices/${id}c" /cart-projections/lag \
        /cart-commands/openapi.json /metrics /healthcheck /lag /; do
        expect 404 "$shop" "$path"
    done
    for path in "/additem/${id}a" "/${id}a/cartitems" /metrics /healthcheck /lag /; do expect 404 "$internal" "$path"; done
}

# Fails if standard input has a password.
leaks() { # what it is
    local text secret
    text=$(cat)
    [[ -n $text ]] || fail "$1 is empty"
    for secret in "$CARTLOG_SECRETS"/*; do
        [[ $text != *"$(< "$secret")"* ]] || fail "$1 contains $(basename "$secret")"
    done
    say "$1: none"
}
