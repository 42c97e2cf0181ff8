package orders_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"converge/consumers/inventory"
	"converge/consumers/shipping"
	"converge/producers/catalog"
	"converge/producers/orders"
	"converge/producers/payments"
	"converge/schemas"
)

// The model: the pure rules of the four services, joined by nothing but a bag of events. An event that
// was emitted may reach each of its readers (schemas.Routes says which) at any time, in any order, any
// number of times; the customer may cancel and every clock may strike at any moment. That is worse than
// what Kafka, the inbox and the retry ladder do together.

// scenario is what the world is like for one order.
type scenario struct {
	method, country string
	short           bool // there is not enough stock
	once            bool // an inbox keeps duplicates away
}

func (sc scenario) String() string {
	name := sc.method + " to " + sc.country
	if sc.short {
		name += ", short of stock"
	}
	if sc.once {
		name += ", each event once"
	}
	return name
}

// participants are the services that take part in the saga; other readers only watch.
var participants = []string{"orders", "inventory", "payments", "shipping"}

// routes maps an event type to the participants that read it.
var routes = func() map[string][]string {
	readers := map[string][]string{}
	for _, r := range schemas.Routes() {
		for _, reader := range r.Readers {
			if slices.Contains(participants, reader) {
				readers[r.Type] = append(readers[r.Type], reader)
			}
		}
	}
	return readers
}()

// delivery is one event on its way to one reader.
type delivery struct{ event, reader string }

// deliveries numbers every delivery there can be, so that a set of them is a bit set.
var deliveries = func() []delivery {
	var all []delivery
	for _, event := range slices.Sorted(maps.Keys(routes)) {
		for _, reader := range routes[event] {
			all = append(all, delivery{event, reader})
		}
	}
	return all
}()

// order is everything that the world knows of one order. It is comparable: that is what lets a search
// visit each situation once.
type order struct {
	saga      orders.Saga
	inventory inventory.State
	payments  payments.State
	shipping  shipping.State
	tries     int
	open      uint64 // deliveries of emitted events that were not made yet
	emitted   uint64 // deliveries of emitted events
}

func placed() order {
	o := order{inventory: inventory.Untouched, payments: payments.Untouched, shipping: shipping.Untouched}
	o.emit("OrderPlaced")
	return o
}

func (o *order) emit(event string) error {
	for i, d := range deliveries {
		if d.event != event {
			continue
		}
		if o.emitted&(1<<i) != 0 {
			return fmt.Errorf("%s was said twice", event)
		}
		o.emitted |= 1 << i
		o.open |= 1 << i
	}
	return nil
}

func (o *order) has(event string) bool {
	for i, d := range deliveries {
		if d.event == event && o.emitted&(1<<i) != 0 {
			return true
		}
	}
	return false
}

// lines is what the order of the model asks for.
var lines = []inventory.Line{{SKU: "BOOK-1", Quantity: 2}, {SKU: "RARE-1", Quantity: 1}}

// deliver makes delivery i, for the first time or again.
func (o *order) deliver(i int, sc scenario, shelf inventory.Shelf) error {
	d := deliveries[i]
	var say string
	switch d.reader {
	case "orders":
		if err := o.tell(orders.Input(d.event)); err != nil {
			return err
		}
	case "inventory":
		o.inventory, say = inventory.On(o.inventory, d.event, lines, shelf)
	case "payments":
		var err error
		o.payments, say, err = payments.On(o.payments, d.event, sc.method, o.tries)
		if err != nil {
			o.tries++
			return nil // it climbs the ladder: still to be delivered
		}
	case "shipping":
		o.shipping, say = shipping.On(o.shipping, d.event, sc.country)
	}
	o.open &^= 1 << i
	if say != "" {
		return o.emit(say)
	}
	return nil
}

// tell gives Orders an input and checks what it does with it.
func (o *order) tell(in orders.Input) error {
	before := o.saga
	next, entered := before.On(in)
	if before.State().Terminal() && len(entered) > 0 {
		return fmt.Errorf("%s left %s by %s", before.State(), entered, in)
	}
	if before.Outcome != orders.Undecided && next.Outcome != before.Outcome {
		return fmt.Errorf("the outcome %s became %s by %s", before.Outcome, next.Outcome, in)
	}
	at := before.State()
	for _, state := range entered {
		if !slices.Contains(orders.Edges(), orders.Edge{From: at, To: state}) {
			return fmt.Errorf("%s to %s by %s is not in the table", at, state, in)
		}
		at = state
	}
	if at != next.State() {
		return fmt.Errorf("by %s the path ends in %s, the state is %s", in, at, next.State())
	}
	// What a status shows is in the states that were entered and in how it ended: nothing of it changes without a
	// version, and what a version showed can be told at the end.
	if next.Outcome != before.Outcome && len(entered) == 0 {
		return fmt.Errorf("the outcome became %s by %s and no version tells", next.Outcome, in)
	}
	if then, now := next.Outcome.Reason(), next.Outcome.ReasonIn(next.State()); then != now {
		return fmt.Errorf("%s has the reason %q, and later %q", next.State(), then, now)
	}
	o.saga = next
	if announcement := next.Outcome.Announcement(); before.Outcome == orders.Undecided && announcement != "" {
		return o.emit(announcement)
	}
	return nil
}

// check holds at every moment, not only at the end: what is FAILED holds nothing, what is COMPLETED
// holds everything.
func (o *order) check() error {
	held := []bool{
		o.inventory == inventory.Reserved,
		o.payments == payments.Authorized || o.payments == payments.Waiting,
		o.shipping == shipping.Arranged,
	}
	switch o.saga.State() {
	case orders.Failed:
		if slices.Contains(held, true) {
			return fmt.Errorf("FAILED, but %s, %s, %s", o.inventory, o.payments, o.shipping)
		}
	case orders.Completed:
		if slices.Contains(held, false) || o.payments == payments.Waiting {
			return fmt.Errorf("COMPLETED, but %s, %s, %s", o.inventory, o.payments, o.shipping)
		}
		if o.has("OrderCancelled") || o.has("OrderTimedOut") {
			return fmt.Errorf("COMPLETED and called off")
		}
	}
	// Once the saga is decided and everybody has heard everything, no clock is needed any more.
	if o.open == 0 && o.saga.Outcome != orders.Undecided && !o.saga.State().Terminal() {
		return fmt.Errorf("everything is delivered and the order waits in %s: %s, %s, %s",
			o.saga.State(), o.inventory, o.payments, o.shipping)
	}
	return nil
}

// strikes are the inputs that no event brings.
var strikes = []orders.Input{orders.Cancel, orders.DeadlinePassed, orders.AcksOverdue}

// steps returns the name of every move that the world can make now.
func (o *order) steps(sc scenario) []string {
	var steps []string
	for i := range deliveries {
		if o.open&(1<<i) != 0 || o.emitted&(1<<i) != 0 && !sc.once {
			steps = append(steps, fmt.Sprintf("%s to %s", deliveries[i].event, deliveries[i].reader))
		}
	}
	for _, s := range strikes {
		steps = append(steps, string(s))
	}
	return append(steps, "the slow card answers")
}

// step makes the move.
func (o *order) step(move string, sc scenario, shelf inventory.Shelf) error {
	before := maps.Clone(shelf)
	err := o.move(move, sc, shelf)
	if err == nil {
		err = o.check()
	}
	if err == nil {
		err = conserved(before, shelf)
	}
	return err
}

func (o *order) move(move string, sc scenario, shelf inventory.Shelf) error {
	if event, reader, ok := strings.Cut(move, " to "); ok {
		return o.deliver(slices.Index(deliveries, delivery{event, reader}), sc, shelf)
	}
	if slices.Contains(strikes, orders.Input(move)) {
		return o.tell(orders.Input(move))
	}
	var say string
	if o.payments, say = payments.Answer(o.payments); say != "" {
		return o.emit(say)
	}
	return nil
}

func conserved(before, after inventory.Shelf) error {
	for _, sku := range slices.Sorted(maps.Keys(before)) {
		a, b := after[sku], before[sku]
		if a.Available+a.Reserved != b.Available+b.Reserved {
			return fmt.Errorf("%s: %d pieces became %d", sku, b.Available+b.Reserved, a.Available+a.Reserved)
		}
		if a.Available < 0 || a.Reserved < 0 {
			return fmt.Errorf("%s: %+v", sku, a)
		}
	}
	return nil
}

func scenarios() []scenario {
	var all []scenario
	for _, method := range catalog.PaymentMethods() {
		for _, country := range []string{catalog.DefaultCountry, catalog.NotServed} {
			for _, short := range []bool{false, true} {
				all = append(all, scenario{method, country, short, false}, scenario{method, country, short, true})
			}
		}
	}
	return all
}

// Every situation that one order can get into is visited, not a sample of them.
func TestEverySagaEndsCompletedOrFullyCompensated(t *testing.T) {
	for _, sc := range scenarios() {
		t.Run(sc.String(), func(t *testing.T) {
			shelf := func(o order) inventory.Shelf {
				level := inventory.Shelf{"BOOK-1": {Available: 5}, "RARE-1": {Available: 1}}
				if sc.short {
					level["RARE-1"] = inventory.Level{}
				}
				if o.inventory == inventory.Reserved {
					level = inventory.Shelf{"BOOK-1": {Available: 3, Reserved: 2}, "RARE-1": {Reserved: 1}}
				}
				return level
			}
			type arrival struct {
				from order
				by   string
			}
			seen := map[order]arrival{placed(): {}}
			queue := []order{placed()}
			ends := map[orders.State]int{}
			for len(queue) > 0 {
				here := queue[0]
				queue = queue[1:]
				if here.open == 0 && here.saga.State().Terminal() {
					ends[here.saga.State()]++
				}
				for _, move := range here.steps(sc) {
					next := here
					err := next.step(move, sc, shelf(here))
					if _, known := seen[next]; !known {
						seen[next] = arrival{here, move}
						queue = append(queue, next)
					}
					if err != nil {
						trace := []string{move}
						for at := here; seen[at].by != ""; at = seen[at].from {
							trace = append([]string{seen[at].by}, trace...)
						}
						t.Fatalf("%v\nafter: %s", err, strings.Join(trace, "; "))
					}
				}
			}
			if ends[orders.Failed] == 0 {
				t.Error("no way ended FAILED, though the customer may always cancel first")
			}
			succeeds := !sc.short && sc.country != catalog.NotServed && sc.method != catalog.CardDeclined
			if (ends[orders.Completed] > 0) != succeeds {
				t.Errorf("%d ways end COMPLETED", ends[orders.Completed])
			}
			t.Logf("%d situations, ends %v", len(seen), ends)
		})
	}
}

// Many orders draw on one shelf, in random interleavings. rapid prints the seed of a failure and the
// shortest run that shows it.
func TestStockAndMoneyAreConservedOverManyOrders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shelf := inventory.Shelf{"BOOK-1": {Available: 7}, "RARE-1": {Available: 2}}
		n := rapid.IntRange(1, 6).Draw(t, "orders")
		all, scs := make([]order, n), make([]scenario, n)
		for i := range all {
			all[i], scs[i] = placed(), rapid.SampledFrom(scenarios()).Draw(t, "scenario")
		}
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			i := rapid.IntRange(0, n-1).Draw(t, "order")
			move := rapid.SampledFrom(all[i].steps(scs[i])).Draw(t, "move")
			if err := all[i].step(move, scs[i], shelf); err != nil {
				t.Fatalf("order %d: %v", i, err)
			}
		}
		for i := range all { // faults stop: what is due is delivered, the clocks strike
			for all[i].open != 0 || all[i].saga.Outcome == orders.Undecided {
				move := string(orders.DeadlinePassed)
				for bit := range deliveries {
					if all[i].open&(1<<bit) != 0 {
						move = fmt.Sprintf("%s to %s", deliveries[bit].event, deliveries[bit].reader)
						break
					}
				}
				if err := all[i].step(move, scs[i], shelf); err != nil {
					t.Fatalf("order %d: %v", i, err)
				}
			}
		}
		var sold int64
		for i := range all {
			if !all[i].saga.State().Terminal() {
				t.Fatalf("order %d rests in %s", i, all[i].saga.State())
			}
			if all[i].saga.State() == orders.Completed {
				sold++
			}
		}
		if want := (inventory.Level{Available: 2 - sold, Reserved: sold}); shelf["RARE-1"] != want {
			t.Fatalf("%d orders completed, the shelf holds %+v", sold, shelf["RARE-1"])
		}
	})
}
