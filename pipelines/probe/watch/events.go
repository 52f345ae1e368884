package watch

import "time"

// The types of event.
const (
	// Started is sent once, when the first request is about to go out.
	Started = "started"
	// First is sent when a server (a version and colour) answers for the first time on fresh or on kept connections.
	First = "first"
	// Failure is sent for each of the first MaxFailures failed requests.
	Failure = "failure"
	// Tick is sent every TickEvery with the counts so far.
	Tick = "tick"
)

// Event is one thing that the watch saw, with the time of the machine it runs on.
type Event struct {
	Type string    `json:"type"`
	At   time.Time `json:"at"`
	// Server and Fresh are those of First; Fresh is also that of Failure.
	Server *Server `json:"server,omitempty"`
	Fresh  bool    `json:"fresh,omitempty"`
	// Kind and Reason are those of Failure.
	Kind   string `json:"kind,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Counts are those of Tick.
	Counts *Counts `json:"counts,omitempty"`
}

// Server is who answered.
type Server struct {
	Version string `json:"version"`
	Colour  string `json:"colour"`
}

// String is "v1.2.0-3f2a1c9 (green)".
func (s Server) String() string {
	version, colour := s.Version, s.Colour
	if version == "" {
		version = "unnamed version"
	}
	if colour == "" {
		return version
	}
	return version + " (" + colour + ")"
}

// Counts are what was counted up to now.
type Counts struct {
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Servers are all that answered, in the order of their first answer.
	Servers []Answered `json:"servers"`
}

// Answered is what one server answered.
type Answered struct {
	Server
	// Fresh and Kept are the answers on fresh and on kept connections.
	Fresh Seen `json:"fresh"`
	Kept  Seen `json:"kept"`
}

// Seen counts answers with the times at which the first and the last of them came, counted by when their requests were
// sent: an answer says which server a connection led to when it was made, not when the answer ended.
type Seen struct {
	Answers   int       `json:"answers"`
	FirstSent time.Time `json:"firstSent,omitzero"`
	LastSent  time.Time `json:"lastSent,omitzero"`
}
