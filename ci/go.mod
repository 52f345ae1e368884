module dagger/greenlight

go 1.25.0

require (
	dagger.io/dagger v0.20.8
	github.com/vektah/gqlparser/v2 v2.5.32
)
