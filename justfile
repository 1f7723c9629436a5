# Short names for people who use just; all of it is `cargo dev`.

# What there is
default:
    @just --list

# Build and start everything; Ctrl-C stops it (`just up --detach`, `just up --release`)
up *arguments:
    cargo dev up {{arguments}}

# Stop what `up --detach` started
down:
    cargo dev down

# Stop it and empty its database and topics
reset:
    cargo dev reset

# Where everything is that is up, as NAME=value lines
env:
    @cargo dev env

# A day in a shop, checked against the log
demo *arguments:
    cargo dev demo {{arguments}}

# Every test, on a stack of its own (`just test -p event-store`)
test *arguments:
    cargo dev test {{arguments}}

# Real processes killed and frozen under load (`just chaos projections --minutes 10`)
chaos *arguments:
    cargo dev chaos {{arguments}}

# Cartlog beside its rivals (`just bench log`, `just bench --quick`)
bench *arguments:
    cargo dev bench {{arguments}}

# Apply the migrations to DATABASE_URL, or to the database that is up
migrate:
    cargo dev migrate

# What queries must know of the database, written anew after a change of SQL
queries *arguments:
    cargo dev queries {{arguments}}

# What CI runs
ci:
    .ci/run
