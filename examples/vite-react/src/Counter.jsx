import { useState } from 'react'

export default function Counter() {
  const [count, setCount] = useState(0)

  return (
    <section className="counter" aria-label="Counter">
      <output id="count" aria-live="polite">
        {count}
      </output>
      <button type="button" id="add" onClick={() => setCount((value) => value + 1)}>
        Count one up
      </button>
      <button type="button" className="quiet" onClick={() => setCount(0)} disabled={count === 0}>
        Reset
      </button>
    </section>
  )
}
