// Command speakers has so many people speak at once, each in a live session of their own, at the pace of life. It tells,
// as a line of JSON, what it sent, how far it fell behind, and what was understood.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	rate    = 16_000
	silence = 1500 * time.Millisecond
)

var (
	url      = flag.String("url", nats.DefaultURL, "the NATS server")
	sessions = flag.Int("sessions", 300, "how many speak")
	seconds  = flag.Float64("seconds", 10, "for how long")
	ramp     = flag.Float64("ramp", 6, "seconds before that, in which they begin one after the other")
	chunk    = flag.Int("chunk-ms", 20, "audio in one message")
	file     = flag.String("wav", "", "what they say: 16 kHz, one channel, a header of 44 bytes")
	prefix   = flag.String("prefix", "speaker", "what sessions are called")
)

// message is a MessagePack map of a chunk: {"type": "chunk", "seq": …, "audio": …}.
func message(buffer []byte, seq uint32, audio []byte) []byte {
	buffer = append(buffer[:0], "\x83\xa4type\xa5chunk\xa3seq\xce"...)
	buffer = binary.BigEndian.AppendUint32(buffer, seq)
	buffer = append(buffer, "\xa5audio\xc5"...)
	buffer = binary.BigEndian.AppendUint16(buffer, uint16(len(audio)))
	return append(buffer, audio...)
}

// speech is one sentence and a pause, of whole chunks.
func speech(size int) ([][]byte, error) {
	data, err := os.ReadFile(*file)
	if err != nil {
		return nil, err
	}
	pcm := append(data[44:], make([]byte, int(silence.Seconds()*rate)*2)...)
	var chunks [][]byte
	for ; len(pcm) >= size; pcm = pcm[size:] {
		chunks = append(chunks, pcm[:size])
	}
	return chunks, nil
}

func run() error {
	size := rate * 2 * *chunk / 1000
	chunks, err := speech(size)
	if err != nil {
		return err
	}
	nc, err := nats.Connect(*url)
	if err != nil {
		return err
	}
	defer nc.Close()
	listener, err := nats.Connect(*url)
	if err != nil {
		return err
	}
	defer listener.Close()
	var finals, interrupts, errors atomic.Int64
	if _, err = listener.Subscribe("ai.voice.transcription.*", func(m *nats.Msg) {
		switch {
		case bytes.Contains(m.Data, []byte("\xa8is_final\xc3")):
			finals.Add(1)
		case bytes.Contains(m.Data, []byte("\xa4type\xa9interrupt")):
			interrupts.Add(1)
		case bytes.Contains(m.Data, []byte("\xa4type\xa5error")):
			errors.Add(1)
		}
	}); err != nil {
		return err
	}
	subjects := make([]string, *sessions)
	phase := make([]time.Duration, *sessions)
	position := make([]int, *sessions)
	period := time.Duration(*chunk) * time.Millisecond
	for i := range subjects {
		subjects[i] = fmt.Sprintf("ai.voice.stream.%s-%d", *prefix, i)
		phase[i] = period * time.Duration(i) / time.Duration(*sessions)
		position[i] = rand.IntN(len(chunks))
	}
	warm := int(*ramp * 1000 / float64(*chunk))
	rounds := int(*seconds*1000/float64(*chunk)) + warm
	sent, before := 0, 0
	var buffer []byte
	var behind time.Duration
	start := time.Now()
	for round := range rounds {
		if round == warm {
			behind, before = 0, sent
			fmt.Println("ramped")
		}
		for i, subject := range subjects {
			if i*warm > round**sessions {
				break // this one and those after it have not begun
			}
			due := start.Add(period*time.Duration(round) + phase[i])
			if wait := time.Until(due); wait > 500*time.Microsecond {
				time.Sleep(wait)
			} else {
				behind = max(behind, -wait)
			}
			buffer = message(buffer, uint32(round), chunks[(position[i]+round)%len(chunks)])
			if err = nc.Publish(subject, buffer); err != nil {
				return err
			}
			sent++
		}
	}
	took := time.Since(start)
	if err = nc.FlushTimeout(10 * time.Second); err != nil {
		return err
	}
	fmt.Println("spoken")
	time.Sleep(time.Second) // for what is on its way
	end := []byte("\x81\xa4type\xa3end")
	for _, subject := range subjects {
		if err = nc.Publish(subject, end); err != nil {
			return err
		}
	}
	if err = nc.FlushTimeout(10 * time.Second); err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // for the last transcripts
	var usage syscall.Rusage
	if err = syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return err
	}
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"chunks": sent - before, "all_chunks": sent, "seconds": took.Seconds() - *ramp, "behind_ms": float64(behind.Microseconds()) / 1000,
		"finals": finals.Load(), "interrupts": interrupts.Load(), "errors": errors.Load(), "cpu_seconds": cpu.Seconds(),
	})
}

func main() {
	flag.Parse()
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
